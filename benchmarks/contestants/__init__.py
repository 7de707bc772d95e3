"""The programs that are measured, each in a separate environment. PROTOCOL.md defines their interface."""
