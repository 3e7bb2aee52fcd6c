"""The optimizer: options, binding, state, step."""
