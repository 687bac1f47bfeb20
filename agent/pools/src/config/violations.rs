//! What is wrong with one object, in the words of the API server.

use std::fmt::{Debug, Display};

/// One broken rule: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path of the field, such as `spec.addresses[0]`.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Collects violations.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    pub(crate) fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    pub(crate) fn add(&mut self, field: &str, message: String) {
        self.0.push(Violation { field: field.to_owned(), message });
    }

    pub(crate) fn invalid(&mut self, field: &str, value: impl Debug, rule: impl Display) {
        self.add(field, format!("Invalid value: {value:?}: {rule}"));
    }

    pub(crate) fn required(&mut self, field: &str, rule: &str) {
        let colon = if rule.is_empty() { "" } else { ": " };
        self.add(field, format!("Required value{colon}{rule}"));
    }

    pub(crate) fn forbidden(&mut self, field: &str, rule: &str) {
        self.add(field, format!("Forbidden: {rule}"));
    }

    pub(crate) fn duplicate(&mut self, field: &str, value: impl Debug) {
        self.add(field, format!("Duplicate value: {value:?}"));
    }

    /// `value` must be one of the words.
    pub(crate) fn one_of(&mut self, field: &str, value: &str, words: &[&str]) {
        if words.contains(&value) {
            return;
        }
        if value.is_empty() {
            return self.required(field, "");
        }
        let words = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        self.add(field, format!("Unsupported value: {value:?}: supported values: {words}"));
    }

    /// A number within limits that are within `u32`'s, or nothing.
    pub(crate) fn within(&mut self, field: &str, value: Option<i64>, low: i64, high: i64) -> Option<u32> {
        let value = value?;
        if (low..=high).contains(&value) {
            return u32::try_from(value).ok();
        }
        self.invalid(field, value, format_args!("must be between {low} and {high}, inclusive"));
        None
    }

    /// The same text twice is wrong.
    pub(crate) fn unique(&mut self, field: &str, texts: &[String]) {
        for (i, text) in texts.iter().enumerate() {
            if texts[..i].contains(text) {
                self.duplicate(&format!("{field}[{i}]"), text);
            }
        }
    }
}
