"""The operator's command line: a local fleet of identical workers behind one Nginx.

Knows: processes, ports, Nginx, the workers' HTTP contract. Does not know: anything inside ``app``; it
imports nothing from there, and a worker does not know that it is one of several.

Three layers: a verb (``verbs``) narrates and decides, a command (``commands``) is pure and returns argv or
configuration text, and one ``Host`` (``host``) does everything that touches the machine.
"""
