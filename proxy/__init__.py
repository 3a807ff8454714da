"""The gateway: scopes, devices, sessions, upstreams, metering."""
