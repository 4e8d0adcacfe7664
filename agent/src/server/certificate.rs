//! When a certificate ends: the one field that we show and that the TLS library keeps to itself.

use crate::date::days;

/// The notAfter of a certificate in DER, Unix seconds; `None` if it is no X.509 certificate (RFC 5280 §4.1) or
/// ends before 1970. Nothing is verified.
pub fn end(der: &[u8]) -> Option<u64> {
    let (certificate, _) = sequence(der)?;
    let (mut body, _) = sequence(certificate)?;
    if *body.first()? == 0xa0 {
        body = skip(body)?; // the version
    }
    for _ in ["serial number", "signature", "issuer"] {
        body = skip(body)?;
    }
    let (validity, _) = sequence(body)?;
    time(skip(validity)?)
}

fn sequence(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(der)?;
    (tag == 0x30).then_some((content, rest))
}

fn skip(der: &[u8]) -> Option<&[u8]> {
    element(der).map(|(_, _, rest)| rest)
}

/// Tag, content and what follows of the first element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// UTCTime `YYMMDDHHMMSSZ` (years 1950 to 2049) or GeneralizedTime `YYYYMMDDHHMMSSZ`.
fn time(der: &[u8]) -> Option<u64> {
    let (tag, text, _) = element(der)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, text.len()) {
        (0x17, 12) => {
            let year: i64 = text[..2].parse().ok()?;
            (
                if year < 50 { 2000 + year } else { 1900 + year },
                &text[2..],
            )
        }
        (0x18, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let seconds =
        days(year, part(0)?, part(2)?) * 86_400 + part(4)? * 3600 + part(6)? * 60 + part(8)?;
    u64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_read_in_both_notations() {
        for (year, expected) in [
            (1999, 915_148_800),
            (2049, 2_493_072_000),
            (2106, 4_291_747_200),
        ] {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.not_before = rcgen::date_time_ymd(1990, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(end(certificate.der()), Some(expected), "{year}");
            for cut in 0..certificate.der().len() {
                assert_eq!(end(&certificate.der()[..cut]), None, "cut at {cut}");
            }
        }
    }
}
