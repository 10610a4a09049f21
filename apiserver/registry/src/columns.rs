//! What `kubectl get` prints: the columns of every kind and the Table that carries them.
