"""A queue in this process's memory, for tests and for trying things out."""

from .store import MemoryStore as MemoryStore
