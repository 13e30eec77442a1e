"""The sections of `params.yaml`, a module each: their types and allowed ranges."""
