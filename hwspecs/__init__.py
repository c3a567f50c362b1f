"""Hardware facts: devices, hosts, links and clusters as TOML, each number with its source and kind."""
