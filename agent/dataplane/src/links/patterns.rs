//! Patterns for link names.

use std::{convert::Infallible, str::FromStr};

/// A list of patterns such as `veth*,cali*`: `*` stands for any characters, `?` for one. The first that matches
/// decides; with `!` in front it says that the link is not meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    glob: String,
    meant: bool,
}

impl Patterns {
    /// Whether a link is meant; `None` if no pattern matches its name.
    pub fn decide(&self, name: &str) -> Option<bool> {
        self.0.iter().find(|pattern| matches(pattern.glob.as_bytes(), name.as_bytes())).map(|pattern| pattern.meant)
    }
}

impl FromStr for Patterns {
    type Err = Infallible;

    fn from_str(list: &str) -> Result<Self, Infallible> {
        let patterns = list.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        Ok(Self(
            patterns
                .map(|pattern| match pattern.strip_prefix('!') {
                    Some(glob) => Pattern { glob: glob.to_owned(), meant: false },
                    None => Pattern { glob: pattern.to_owned(), meant: true },
                })
                .collect(),
        ))
    }
}

fn matches(glob: &[u8], name: &[u8]) -> bool {
    match (glob.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', glob)), _) if matches(glob, name) => true,
        (Some((b'*', _)), Some((_, name))) => matches(glob, name),
        (Some((b'?', glob)), Some((_, name))) => matches(glob, name),
        (Some((wanted, glob)), Some((found, name))) => wanted == found && matches(glob, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match() {
        for (list, name, decision) in [
            ("eth0", "eth0", Some(true)),
            ("eth0", "eth01", None),
            ("eth*", "eth", Some(true)),
            ("*0", "eth10", Some(true)),
            ("e?h*", "eth10", Some(true)),
            ("e?h*", "eh10", None),
            ("", "eth0", None),
            ("!veth9, veth*", "veth9", Some(false)),
            ("!veth9, veth*", "veth1", Some(true)),
            ("veth*,!veth9", "veth9", Some(true)),
        ] {
            let patterns: Patterns = list.parse().unwrap();
            assert_eq!(patterns.decide(name), decision, "{name} in {list:?}");
        }
    }
}
