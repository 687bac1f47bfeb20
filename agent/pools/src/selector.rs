//! Label selectors, ready to match (`metav1.LabelSelectorAsSelector`).

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Violations;
use crate::objects::{LabelSelector, LabelSelectorRequirement};

/// A selector. Without conditions it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(BTreeSet<Condition>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Condition {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Selector {
    /// Reads a selector; what is wrong with it goes to `found`, with `field` before it.
    pub(crate) fn new(selector: &LabelSelector, field: &str, found: &mut Violations) -> Self {
        let labels = selector.match_labels.iter().map(|(key, value)| {
            let field = format!("{field}.matchLabels[{key}]");
            check_key(key, &field, found);
            check_value(value, &field, found);
            Condition::In(key.clone(), BTreeSet::from([value.clone()]))
        });
        let mut conditions: BTreeSet<Condition> = labels.collect();
        let mut seen = BTreeSet::new();
        for (i, expression) in selector.match_expressions.iter().enumerate() {
            let field = format!("{field}.matchExpressions[{i}]");
            let Some(condition) = condition(expression, &field, found) else { continue };
            if !seen.insert(condition.clone()) {
                found.duplicate(&field, &expression.key);
            }
            conditions.insert(condition);
        }
        Self(conditions)
    }

    /// Reads a list of selectors; the same one twice is wrong.
    pub(crate) fn list(selectors: &[LabelSelector], field: &str, found: &mut Violations) -> Vec<Self> {
        let mut list: Vec<Self> = Vec::new();
        for (i, selector) in selectors.iter().enumerate() {
            let field = format!("{field}[{i}]");
            let selector = Self::new(selector, &field, found);
            if list.contains(&selector) {
                found.add(&field, "Duplicate value: selects the same as an earlier one".to_owned());
            }
            list.push(selector);
        }
        list
    }

    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // A label that is not there is in no list.
            Condition::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Condition::Exists(key) => labels.contains_key(key),
            Condition::DoesNotExist(key) => !labels.contains_key(key),
        })
    }

    /// Whether any of a list selects an object with these labels.
    pub fn any(selectors: &[Self], labels: &BTreeMap<String, String>) -> bool {
        selectors.iter().any(|selector| selector.matches(labels))
    }
}

fn condition(expression: &LabelSelectorRequirement, field: &str, found: &mut Violations) -> Option<Condition> {
    let LabelSelectorRequirement { key, operator, values } = expression;
    check_key(key, &format!("{field}.key"), found);
    let field_of_values = format!("{field}.values");
    let mut unique = BTreeSet::new();
    for (i, value) in values.iter().enumerate() {
        let field = format!("{field_of_values}[{i}]");
        check_value(value, &field, found);
        if !unique.insert(value.clone()) {
            found.duplicate(&field, value);
        }
    }
    let with_values = matches!(operator.as_str(), "In" | "NotIn");
    if with_values && values.is_empty() {
        found.required(&field_of_values, "must be specified when `operator` is 'In' or 'NotIn'");
    }
    let key = key.clone();
    let condition = match operator.as_str() {
        "In" => Condition::In(key, unique),
        "NotIn" => Condition::NotIn(key, unique),
        "Exists" => Condition::Exists(key),
        "DoesNotExist" => Condition::DoesNotExist(key),
        other => {
            found.one_of(&format!("{field}.operator"), other, &["DoesNotExist", "Exists", "In", "NotIn"]);
            return None;
        }
    };
    if !with_values && !values.is_empty() {
        found.forbidden(&field_of_values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
    }
    Some(condition)
}

/// A label's key: a name, with a DNS name and a slash before it or without.
fn check_key(key: &str, field: &str, found: &mut Violations) {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let good_prefix = prefix.is_none_or(|prefix| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        !prefix.is_empty() && prefix.len() <= 253 && prefix.chars().all(good)
    });
    if name.is_empty() || !is_value(name) || !good_prefix {
        found.invalid(field, key, "must be a label key, such as app or example.com/app");
    }
}

fn check_value(value: &str, field: &str, found: &mut Violations) {
    if !is_value(value) {
        let rule = "must be at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";
        found.invalid(field, value, rule);
    }
}

fn is_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = [text.chars().next(), text.chars().next_back()];
    text.len() <= 63 && text.chars().all(inner) && ends.iter().flatten().all(char::is_ascii_alphanumeric)
}
