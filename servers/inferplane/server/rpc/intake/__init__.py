"""What calls bring: their bodies, read in turn, and how much of what arrives a process may hold.

    bodies ── reads in turn; what is slow ──► arrivals ── every 50 ms: has the process grown too much?
                                                 │   by how much: growth (weighed by process_memory)
                                                 │   what came by which connection: connections (counted by sockets)
                                                 └─► who goes: shedding ── calls end, or sockets hang up

Decisions 0008 and 0036 say why.
"""
