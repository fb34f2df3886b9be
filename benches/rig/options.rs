//! What the command lines of these benchmarks have in common.

use super::Failure;

/// What every benchmark can be asked for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) smoke: bool,
    pub(crate) only: Option<String>,
}

impl Options {
    /// Reads the arguments. Options that are not of all benchmarks go to `own`, with what follows them; it tells whether it
    /// knows them.
    pub(crate) fn parse(
        arguments: impl Iterator<Item = String>,
        mut own: impl FnMut(&str, &mut dyn Iterator<Item = String>) -> Result<bool, Failure>,
    ) -> Result<Self, Failure> {
        let mut options = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--json" => options.json = true,
                "--smoke" => options.smoke = true,
                // cargo passes this to every bench target.
                "--bench" => {}
                word if !word.starts_with('-') => options.only = Some(word.to_owned()),
                other if own(other, &mut arguments)? => {}
                other => return Err(Failure::new(format!("unknown option {other}"))),
            }
        }
        Ok(options)
    }

    /// Whether something of this name was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }
}
