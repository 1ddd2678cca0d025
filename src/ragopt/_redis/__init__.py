"""Connections to Redis servers, for every part that talks to one."""
