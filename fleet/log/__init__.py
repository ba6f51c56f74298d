"""The prediction log of the workers: ask it questions, compact it.

Arrows point down: cli → query → questions, truth → files; cli → compact → alone → files. What a row holds is written in the
README; this package knows its columns by name and imports nothing from the workers.
"""
