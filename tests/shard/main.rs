//! The layer of sockets and TLS, against servers and devices on the loopback.

mod ca_files;
mod driver;
mod peers;
mod raw_device;
mod tls;
