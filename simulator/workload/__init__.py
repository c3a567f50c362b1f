"""Model descriptions: what a config.json, a GGUF header or the bundled zoo says, as typed values."""
