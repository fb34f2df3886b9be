//! The real binary, with peers of a third-party stack (`fe2o3-amqp`) as devices and as hubs, and the IoT Hub stand-in.
//!
//! One program for all: each would compile and link the third-party stack again.

mod attacks;
mod azure_clients;
mod backpressure;
mod cbs;
mod device;
mod failover;
mod fleet;
mod iothub;
mod lifetime;
mod listener;
mod outage;
mod plain;
mod policy;
mod pool;
mod probe;
mod recovery;
mod reload;
mod reload_security;
mod routes;
mod service;
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod transfer;
mod windows;
