//! BGP communities, and the names that Community objects give them.

use std::collections::BTreeMap;
use std::fmt;

use super::Violations;
use crate::objects;

/// A community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Community {
    /// RFC 1997, `A:B`.
    Standard(u16, u16),
    /// RFC 8092, `large:A:B:C`.
    Large(u32, u32, u32),
}

impl Community {
    /// Reads a community; `None` if the text is of neither form.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [a, b] => Some(Self::Standard(number(a)?.try_into().ok()?, number(b)?.try_into().ok()?)),
            ["large", a, b, c] => Some(Self::Large(number(a)?, number(b)?, number(c)?)),
            _ => None,
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
        }
    }
}

/// Reads the names of one object.
pub(super) fn aliases(object: &objects::Community, found: &mut Violations) -> BTreeMap<String, Community> {
    let mut aliases = BTreeMap::new();
    for (i, alias) in object.spec.communities.iter().enumerate() {
        let Some(community) = Community::parse(&alias.value) else {
            let rule = "must be A:B with numbers up to 65535, or large:A:B:C with numbers up to 4294967295";
            found.invalid(&format!("spec.communities[{i}].value"), &alias.value, rule);
            continue;
        };
        if aliases.insert(alias.name.clone(), community).is_some() {
            found.duplicate(&format!("spec.communities[{i}].name"), &alias.name);
        }
    }
    aliases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for text in ["0:0", "65535:65535", "large:1:4294967295:0"] {
            assert_eq!(Community::parse(text).map(|community| community.to_string()), Some(text.to_owned()));
        }
        for text in ["", "1", "1:65536", "1:2:3", "small:1:2:3", "large:1:2:4294967296", "a:b", "1:", "1:+2", "1: 2"] {
            assert_eq!(Community::parse(text), None, "{text}");
        }
    }
}
