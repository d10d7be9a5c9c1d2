//! Signals and deadlines: a run stops when it is told to, wherever it stands.
