//! A recovery sheet on paper: A4, with the secret as a QR code besides, which a phone or a scanner reads without a typing error.
//!
//! Fonts are those that every PDF reader has (ISO 32000-1, 9.6.2.2), so nothing is embedded.

use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str};
use qrcodegen::{QrCode, QrCodeEcc};

use super::sheet::{Sheet, Step};

// All in points, 1/72 inch, from the lower left.
const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 56.0;
const TITLE: f32 = 16.0;
const TEXT: f32 = 10.0;
const CODE: f32 = 9.0;
/// Between two lines, as a part of the font's size.
const LEADING: f32 = 1.4;
/// Side of the QR code with the quiet zone around it.
const QR: f32 = 150.0;
/// White modules around a QR code (ISO/IEC 18004).
const QUIET: f32 = 4.0;
/// Characters of a line: Courier's are 0.6 of its size wide, Helvetica's half of it on average.
const CODE_COLUMNS: usize = 88;
const TEXT_COLUMNS: usize = 88;

const PROSE: Name<'_> = Name(b"F1");
const BOLD: Name<'_> = Name(b"F2");
const MONO: Name<'_> = Name(b"F3");
const FONTS: [(Name<'_>, &[u8]); 3] = [
    (PROSE, b"Helvetica"),
    (BOLD, b"Helvetica-Bold"),
    (MONO, b"Courier"),
];

/// The document.
pub fn of(sheet: &Sheet<'_>) -> Vec<u8> {
    let mut page = Page {
        content: Content::new(),
        y: HEIGHT - MARGIN,
    };
    page.write(BOLD, TITLE, sheet.title.as_bytes());
    page.skip(TEXT);
    for (name, value) in &sheet.facts {
        for line in wrapped(&format!("{name}: {value}"), TEXT_COLUMNS, "") {
            page.write(PROSE, TEXT, line.as_bytes());
        }
    }
    page.skip(TEXT);
    page.write(BOLD, TEXT, sheet.secret_name.as_bytes());
    let secret = sheet.secret.expose_secret();
    for line in secret.chunks(CODE_COLUMNS) {
        page.write(MONO, CODE, line);
    }
    page.qr(secret);
    for step in &sheet.steps {
        page.skip(TEXT / 2.0);
        match step {
            Step::Say(sentence) => {
                for line in wrapped(sentence, TEXT_COLUMNS, "") {
                    page.write(PROSE, TEXT, line.as_bytes());
                }
            }
            Step::Run(command) => {
                for line in wrapped(command, CODE_COLUMNS, " \\") {
                    page.write(MONO, CODE, line.as_bytes());
                }
            }
        }
    }
    document(&page.content.finish())
}

fn document(content: &[u8]) -> Vec<u8> {
    let [catalog, pages, page, text] = [1, 2, 3, 4].map(Ref::new);
    let fonts = (5..).map(Ref::new).zip(FONTS);
    let mut pdf = Pdf::new();
    pdf.catalog(catalog).pages(pages);
    pdf.pages(pages).kids([page]).count(1);
    let mut leaf = pdf.page(page);
    leaf.media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT))
        .parent(pages)
        .contents(text);
    let mut resources = leaf.resources();
    let mut named = resources.fonts();
    for (id, (name, _)) in fonts.clone() {
        named.pair(name, id);
    }
    named.finish();
    resources.finish();
    leaf.finish();
    for (id, (_, base)) in fonts {
        pdf.type1_font(id).base_font(Name(base));
    }
    pdf.stream(text, content);
    pdf.finish()
}

/// The one page, written from top to bottom.
struct Page {
    content: Content,
    /// Where the next line's top is.
    y: f32,
}

impl Page {
    fn skip(&mut self, points: f32) {
        self.y -= points;
    }

    /// One line; what the fonts' encoding does not have becomes '?'.
    fn write(&mut self, font: Name<'_>, size: f32, line: &[u8]) {
        self.y -= size * LEADING;
        let printable: Vec<u8> = line
            .iter()
            .map(|byte| {
                if (b' '..=b'~').contains(byte) {
                    *byte
                } else {
                    b'?'
                }
            })
            .collect();
        self.content
            .begin_text()
            .set_font(font, size)
            .next_line(MARGIN, self.y)
            .show(Str(&printable))
            .end_text();
    }

    /// `secret` as a QR code, if one can hold it.
    fn qr(&mut self, secret: &[u8]) {
        let Ok(code) = QrCode::encode_binary(secret, QrCodeEcc::Medium) else {
            return;
        };
        let modules = code.size();
        let side = QR / (as_points(modules) + 2.0 * QUIET);
        self.y -= QR;
        let (left, top) = (MARGIN + QUIET * side, self.y + QR - QUIET * side);
        for y in 0..modules {
            for x in (0..modules).filter(|x| code.get_module(*x, y)) {
                let (x, y) = (as_points(x) * side, as_points(y + 1) * side);
                self.content.rect(left + x, top - y, side, side);
            }
        }
        self.content.fill_nonzero();
    }
}

/// A QR code has at most 177 modules on a side.
fn as_points(modules: i32) -> f32 {
    f32::from(i16::try_from(modules).unwrap_or(i16::MAX))
}

/// `text` in lines of at most `columns` characters where it has spaces; all but the last end in `mark`.
fn wrapped(text: &str, columns: usize, mark: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let fits = |line: &&mut String| line.len() + 1 + word.len() + mark.len() <= columns;
        match lines.last_mut().filter(fits) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    let last = lines.len().saturating_sub(1);
    for line in &mut lines[..last] {
        line.push_str(mark);
    }
    lines
}

#[cfg(test)]
mod tests {
    use latchkey_secret::SecretBytes;

    use super::*;

    fn pdf(secret: &[u8]) -> Vec<u8> {
        let mut bytes = SecretBytes::with_capacity(secret.len()).unwrap();
        bytes.push(secret).unwrap();
        of(&Sheet {
            title: "Recovery sheet for 'dätä'".to_owned(),
            facts: vec![("Device", "/dev/vdb".to_owned())],
            secret_name: "Recovery key",
            secret: &bytes,
            steps: vec![Step::Run("cryptsetup open (x) data".to_owned())],
        })
    }

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack
            .windows(needle.len())
            .any(|window| window == needle)
    }

    #[test]
    fn the_page_has_the_secret_as_text_and_as_a_code() {
        let page = pdf(b"cbde-fghi");
        assert!(page.starts_with(b"%PDF-1.") && page.trim_ascii_end().ends_with(b"%%EOF"));
        assert!(contains(&page, b"(cbde-fghi) Tj"));
        assert!(
            contains(&page, b"(cryptsetup open \\(x\\) data) Tj")
                || contains(&page, b"cryptsetup open (x) data")
        );
        let squares = page.windows(4).filter(|window| window == b" re\n").count();
        let code = QrCode::encode_binary(b"cbde-fghi", QrCodeEcc::Medium).unwrap();
        let grid = (0..code.size()).flat_map(|y| (0..code.size()).map(move |x| (x, y)));
        assert_eq!(
            squares,
            grid.filter(|(x, y)| code.get_module(*x, *y)).count()
        );
    }

    #[test]
    fn a_secret_that_no_code_holds_is_there_as_text() {
        let page = pdf(&[b'a'; 4000]);
        assert!(!contains(&page, b" re\n"));
        assert!(contains(&page, &[b'a'; CODE_COLUMNS]));
    }

    #[test]
    fn long_commands_go_on_in_the_next_line_as_a_shell_reads_them() {
        assert_eq!(
            wrapped("a bb ccc dddd", 8, " \\"),
            ["a bb \\", "ccc \\", "dddd"]
        );
        assert_eq!(wrapped("short", 8, " \\"), ["short"]);
        assert_eq!(wrapped("muchtoolong a", 4, ""), ["muchtoolong", "a"]);
    }
}
