"""Devices and processes: replication, collectives, compiled programs."""
