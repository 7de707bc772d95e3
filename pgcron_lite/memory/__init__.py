"""The store in this process's memory, for tests and experiments."""

from .store import MemoryStore as MemoryStore
