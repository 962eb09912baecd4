//! Just enough CSV (RFC 4180) for label files: quoted fields, doubled quotes, CRLF, and line breaks inside quotes.

use anyhow::{Result, bail, ensure};

/// One record and the line it starts at, counted from 1.
pub(super) struct Record {
    pub(super) line: usize,
    pub(super) fields: Vec<String>,
}

/// Splits `text` into records; empty lines and a leading byte order mark are passed over.
///
/// # Errors
/// A quote that is never closed or that stands in the middle of a field; the message names the line.
pub(super) fn parse(text: &str) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    let mut line = 1;
    while chars.peek().is_some() {
        let mut record = Record { line, fields: vec![String::new()] };
        let mut field = 0;
        let mut quoted = false;
        let mut closed = false;
        loop {
            let Some(c) = chars.next() else {
                ensure!(!quoted, "line {}: a quote is never closed", record.line);
                break;
            };
            line += usize::from(c == '\n');
            let text = &mut record.fields[field];
            match c {
                '"' if quoted => {
                    if chars.next_if_eq(&'"').is_some() {
                        text.push('"');
                    } else {
                        quoted = false;
                        closed = true;
                    }
                }
                c if quoted => text.push(c),
                ',' => {
                    record.fields.push(String::new());
                    field += 1;
                    closed = false;
                }
                '\n' => break,
                '\r' if matches!(chars.peek(), Some('\n') | None) => {}
                '"' if text.is_empty() && !closed => quoted = true,
                _ if closed || c == '"' => bail!("line {line}: a quote in the middle of a field"),
                c => text.push(c),
            }
        }
        if record.fields.iter().any(|f| !f.is_empty()) {
            records.push(record);
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        parse(text).unwrap().into_iter().map(|r| r.fields).collect()
    }

    #[test]
    fn quotes_breaks_and_blank_lines() {
        assert_eq!(fields("a,b\r\n\n\"x, \"\"y\"\"\n2\",\n,z"), [["a", "b"], ["x, \"y\"\n2", ""], ["", "z"]]);
        assert_eq!(parse("a\n\"b\nb\"\nc").unwrap().iter().map(|r| r.line).collect::<Vec<_>>(), [1, 2, 4]);
    }

    #[test]
    fn misplaced_quotes_name_their_line() {
        for (text, line) in [("a\n\"b", 2), ("a\nb\"c", 2), ("\"a\"b", 1)] {
            let error = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        }
    }
}
