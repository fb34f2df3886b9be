//! The IoT Hub stand-in by itself, no router between: it must do what the tests that rely on it expect of it.

mod stand_in;
mod support;
