//! qdrouterd's log modules: the names that a `log` section may configure, and what a target means.

use std::fmt;

/// One log module. Get one by [`Module::from_name`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Module(u8);

/// All modules, `DEFAULT` first. Those of releases before 1.0 (`CONFIG`, `DISPATCH`) and of 1.15 to 1.18
/// (`HTTP_ADAPTOR`, `TCP_ADAPTOR`) are there so that a file of that time loads. `MAIN` is printed by qdrouterd, too,
/// but only here it can be configured.
const NAMES: [&str; Module::COUNT] = [
    "DEFAULT",
    "AGENT",
    "AUTHSERVICE",
    "CONFIG",
    "CONN_MGR",
    "CONTAINER",
    "DISPATCH",
    "ERROR",
    "HTTP",
    "HTTP_ADAPTOR",
    "MAIN",
    "MESSAGE",
    "POLICY",
    "PROTOCOL",
    "PYTHON",
    "ROUTER",
    "ROUTER_CORE",
    "ROUTER_HELLO",
    "ROUTER_LS",
    "ROUTER_MA",
    "SERVER",
    "TCP_ADAPTOR",
];

impl Module {
    /// How many there are.
    pub(super) const COUNT: usize = 22;
    /// What every module that is not configured follows.
    pub const DEFAULT: Module = Module(0);
    /// The frame trace.
    pub const PROTOCOL: Module = Module(13);

    /// The module of this exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        let index = NAMES.iter().position(|known| *known == name)?;
        u8::try_from(index).ok().map(Module)
    }

    /// The module that an event of this target belongs to.
    pub(super) fn of_target(target: &str) -> Self {
        Module::from_name(target).unwrap_or(Module::DEFAULT)
    }

    /// Every module.
    pub(super) fn all() -> impl Iterator<Item = Module> {
        (0u8..).map(Module).take(Module::COUNT)
    }

    /// Position in a table with one entry per module.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// The name as in configuration files and lines.
    pub fn name(self) -> &'static str {
        NAMES.get(self.index()).copied().unwrap_or("DEFAULT")
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_modules_agree() {
        assert_eq!(Module::DEFAULT.name(), "DEFAULT");
        assert_eq!(Module::PROTOCOL.name(), "PROTOCOL");
        for module in Module::all() {
            assert_eq!(Module::from_name(module.name()), Some(module));
        }
        assert_eq!(Module::all().count(), NAMES.len());
        assert_eq!(Module::from_name("router"), None, "names are case-sensitive");
    }

    #[test]
    fn targets() {
        assert_eq!(Module::of_target("SERVER").name(), "SERVER");
        assert_eq!(Module::of_target("rustls::client"), Module::DEFAULT);
    }
}
