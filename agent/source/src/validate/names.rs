//! What names may look like. Each check returns the rule that is broken.

type Checked = Result<(), &'static str>;

/// A DNS label (RFC 1123): up to 63 lower-case letters, digits and inner hyphens.
pub fn label(name: &str) -> Checked {
    if name.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    if !is_label(name) {
        return Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                    start and end with an alphanumeric character (e.g. 'my-name', or '123-abc')");
    }
    Ok(())
}

/// A DNS subdomain: labels joined by dots, up to 253 characters.
pub fn subdomain(name: &str) -> Checked {
    if name.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    if !name.split('.').all(is_label) {
        return Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                    and must start and end with an alphanumeric character (e.g. 'example.com')");
    }
    Ok(())
}

/// The name of a port (RFC 6335): up to 15 lower-case letters, digits and single inner hyphens, at least one letter.
pub fn port(name: &str) -> Checked {
    if name.len() > 15 {
        return Err("must be no more than 15 characters");
    }
    if !is_label(name) || name.contains("--") || !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(
            "must contain only alpha-numeric characters (a-z, 0-9) and single inner hyphens (-), and at least \
                    one letter",
        );
    }
    Ok(())
}

/// A qualified name: an optional DNS subdomain and a slash, then up to 63 letters, digits, `-`, `_` and `.`.
pub fn qualified(name: &str) -> Checked {
    let (prefix, name) = name.split_once('/').map_or((None, name), |(prefix, name)| (Some(prefix), name));
    prefix.map_or(Ok(()), subdomain)?;
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() > 63 || !bytes.iter().copied().all(inner) || !edge(bytes.first()) || !edge(bytes.last()) {
        return Err(
            "name part must consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and \
                    end with an alphanumeric character (e.g. 'MyName', or 'example.com/MyName')",
        );
    }
    Ok(())
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edge = |byte: Option<&u8>| byte.is_some_and(|&byte| byte != b'-');
    bytes.iter().copied().all(inner) && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "web-1", "1", &"x".repeat(63)] {
            assert_eq!(label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "Web", "a_b", "a.b", "ä", &"x".repeat(64)] {
            assert!(label(bad).is_err(), "{bad}");
        }
        assert!(subdomain("node-1.example.com").is_ok() && subdomain("a..b").is_err());
        assert!(
            port("http").is_ok() && port("8080").is_err() && port("a--b").is_err() && port(&"p".repeat(16)).is_err()
        );
        assert!(qualified("example.com/My_Name").is_ok() && qualified("/x").is_err() && qualified("x/").is_err());
    }
}
