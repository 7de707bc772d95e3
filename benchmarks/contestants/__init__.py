"""The programs that are measured, each run in an environment of its own. What they must do: PROTOCOL.md."""
