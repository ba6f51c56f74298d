"""The fleet as processes of this machine: gunicorn workers behind one nginx, remembered in one state file.

Arrows point down: runtime → converge, roll → workers, nginx → desk, commands.
"""
