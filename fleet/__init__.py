"""The operator's command line: a fleet of identical workers behind one Nginx, as processes or as containers.

Knows: processes, containers, ports, Nginx, the workers' HTTP contract. Does not know: anything inside ``app``; it
imports nothing from there, and a worker does not know that it is one of several.

Three layers: a verb (``verbs``) narrates and decides, the same for both runtimes; a runtime (``local``, ``compose``)
knows the order of steps, its commands are pure and return argv or configuration text; and one ``Host`` (``host``) does
everything that touches the machine. ``runtime`` is the seam between them, ``runtimes`` the one place that knows both.
"""
