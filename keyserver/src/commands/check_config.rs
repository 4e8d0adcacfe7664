//! `latchkeyd check-config`: says whether the configuration is good.

use clap::Args;

use super::target::ConfigSource;
use super::{Failure, output};
use crate::admin::socket;

/// Check the configuration without starting anything
#[derive(Debug, Args)]
#[command(visible_alias = "validate")]
pub struct CheckConfig {
    #[command(flatten)]
    source: ConfigSource,
}

impl CheckConfig {
    pub fn run(self) -> Result<(), Failure> {
        let (config, path) = self.source.load()?;
        output::data(&format!("'{}' is good", path.display()))?;
        if let Some(problem) = socket::shut_to_approvers(&config) {
            output::hint(&format!("but {problem}"));
        }
        Ok(())
    }
}
