//! What is wrong with a file or an object in it.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong, with all that is known about where. Faults are values: they are reported, and
/// the last good state of what they concern stays in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file, once known.
    pub file: Option<PathBuf>,
    /// Line in it, from 1.
    pub line: Option<u64>,
    /// The object, as `Kind/namespace/name`, where the fault is one object's.
    pub object: Option<String>,
    /// Path of the field, as Kubernetes writes it.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// Whether the object is in force all the same.
    pub severity: Severity,
}

/// What a fault means for its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object, or the file, is refused.
    Error,
    /// The object is taken.
    Warning,
}

impl Fault {
    /// An error about which nothing else is known yet.
    pub fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { file: None, line: None, object: None, field: None, message, severity: Severity::Error }
    }

    /// A warning.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::new(message) }
    }

    /// Adds the file.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Adds the line; 0 and `None` say nothing.
    #[must_use]
    pub fn at_line(mut self, line: Option<u64>) -> Self {
        self.line = line.filter(|&line| line > 0);
        self
    }

    /// Adds the field.
    #[must_use]
    pub fn at_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty() && field != ".");
        self
    }

    /// Adds the object.
    #[must_use]
    pub fn of_object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// Whether it makes its object unusable.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `file:line: error: object: field: message`, each part where it is known.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
