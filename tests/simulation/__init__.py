"""Simulation of the whole system in virtual time, driven by a seed.

Workers, with scheduler, reaper and the handling of suspects, and producers, with their stock of ids, are the
production code. They use one memory store over connections that lose, delay and repeat statements, while processes
are killed, frozen and stopped. The invariants are checked after each event. See `__main__` for the command.

The parts that run on threads and sockets in production are models: the loop around the worker (`process.Process`), the
heartbeat, the guard, the doorbell and the slots. The models are in `processes` and have the same steps as the original.
"""
