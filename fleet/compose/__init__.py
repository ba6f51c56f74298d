"""The fleet as containers: what docker-compose.yml says, changed without losing a request.

Arrows point down: runtime → change → workers → engine → commands; project, containers and checks are leaves. The
engine itself remembers what runs; the one thing it cannot know, how many workers an unfinished roll had, is a file.
"""
