"""The dashboards, and what Grafana reads at its start.

`grafana.ini` and `provisioning/` are configuration. `dashboards/*.json` are written by ``python -m grafana.build`` from
the Python modules here, never by hand; nothing that runs in the fleet imports this package.
"""
