//! As much of DNS (RFC 1035 4) as it takes to ask a name server for its name.

/// The name that is asked for, label by label.
const NAME: [&str; 3] = ["whoami", "culvert", "test"];
const TXT: u16 = 16;
const IN: u16 = 1;
/// Length of a message's header.
const HEADER: usize = 12;

/// A query for the TXT record of `whoami.culvert.test`.
pub fn query(id: u16) -> Vec<u8> {
    let recursion_desired = 0x0100;
    let mut message = Vec::new();
    for word in [id, recursion_desired, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in NAME {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(TXT.to_be_bytes());
    message.extend(IN.to_be_bytes());
    message
}

/// The text of the first answer's TXT record; `None` if the message does not answer query `id`.
pub fn answer(message: &[u8], id: u16) -> Option<String> {
    let word = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let (flags, answers) = (word(2)?, word(6)?);
    let (is_response, error) = (flags & 0x8000 != 0, flags & 0x000f);
    if word(0)? != id || !is_response || error != 0 || answers == 0 {
        return None;
    }
    let question = after_name(message, HEADER)? + 4;
    let record = after_name(message, question)?;
    if word(record)? != TXT {
        return None;
    }
    // Type, class, time to live, length of the data; then the text after its own length.
    let data = record + 10;
    let length = usize::from(*message.get(data)?);
    let text = message.get(data + 1..data + 1 + length)?;
    String::from_utf8(text.to_vec()).ok()
}

/// Where a name that begins at `at` ends: at a zero label or after a pointer.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_query_is_read_and_no_other() {
        let mut message = query(77);
        message[2] |= 0x80;
        message[7] = 1;
        message.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0, 6, 5]);
        message.extend(b"dns-1");
        assert_eq!(answer(&message, 77), Some("dns-1".to_owned()));
        assert_eq!(answer(&message, 78), None);
        assert_eq!(answer(&query(77), 77), None);
        for cut in 0..message.len() {
            assert_eq!(answer(&message[..cut], 77), None, "{cut}");
        }
    }
}
