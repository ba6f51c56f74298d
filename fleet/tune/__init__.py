"""The tuning loop: change the number of workers, measure, decide, and document so that it can be believed and repeated.

Arrows point down: cli → campaign, report → decide → latency, laws, gates → statistics → protocol.
"""
