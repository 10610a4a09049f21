//! RocksDB and real files.
