"""A simulation of the whole system in virtual time, driven by a seed.

The machines are those of production: workers with their scheduler, reaper and quarantine, and producers with their
stock of ids. They talk to one memory store over links that lose, delay and repeat statements, while processes are
killed, frozen and stopped. The invariants are checked after each event. See `__main__` for the command.

Modelled by hand, because production runs it on threads and sockets: the loop around the worker (`process.Process`),
the heartbeat, the guard, the doorbell and the slots. Each model is in `processes` and follows the original step by
step.
"""
