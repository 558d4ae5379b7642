"""Methods that train on data which stay with their clients."""
