//! The real binary: command line, exit codes, start-up lines, signals, going to the background.

mod background;
mod check;
mod foreground;
mod journal;
mod site;
mod usage;
