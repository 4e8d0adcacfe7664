//! The timelines of boots, side by side, as SVG 1.1.

use std::fmt::Write;

/// One boot.
pub struct Timeline {
    /// Whose.
    pub name: String,
    /// Parts that follow one another: what, and when it ended, in seconds.
    pub parts: Vec<Part>,
}

/// One part of a boot.
pub struct Part {
    /// What went on.
    pub text: String,
    /// When it ended, in seconds since the kernel's start.
    pub end: f64,
    /// Its colour.
    pub colour: &'static str,
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 110.0;
const ROW: f64 = 64.0;
const BAR: f64 = 26.0;
const TOP: f64 = 40.0;
const BELOW: f64 = 80.0;

/// The picture; its scale ends with the longest boot.
pub fn draw(title: &str, timelines: &[Timeline]) -> String {
    let ends = timelines
        .iter()
        .flat_map(|line| line.parts.iter().map(|part| part.end));
    let longest = ends.fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 30.0) / longest;
    let bottom = TOP + ROW * timelines.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n",
        bottom + BELOW,
        escape(title)
    );
    for (row, line) in timelines.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}</text>",
            y + 18.0,
            escape(&line.name)
        );
        let mut begin = 0.0;
        for part in &line.parts {
            let (x, width) = (LEFT + begin * scale, (part.end - begin).max(0.0) * scale);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\">\
                 <title>{}: {:.2} s</title></rect>",
                part.colour,
                escape(&part.text),
                part.end - begin
            );
            begin = part.end;
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{begin:.1} s</text>",
            LEFT + begin * scale,
            y + BAR + 16.0
        );
    }
    legend(&mut svg, timelines, bottom + 24.0);
    svg + "</svg>\n"
}

fn legend(svg: &mut String, timelines: &[Timeline], y: f64) {
    let mut known: Vec<&str> = Vec::new();
    let (mut x, mut y) = (10.0, y);
    for part in timelines.iter().flat_map(|line| &line.parts) {
        if known.contains(&part.text.as_str()) {
            continue;
        }
        known.push(&part.text);
        let width = 34.0 + 7.2 * part.text.len() as f64;
        if x + width > WIDTH {
            (x, y) = (10.0, y + 22.0);
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\" fill=\"{}\"/><text x=\"{}\" y=\"{y}\">{}</text>",
            y - 12.0,
            part.colour,
            x + 20.0,
            escape(&part.text)
        );
        x += width;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another_and_text_is_escaped() {
        let part = |text: &str, end| Part {
            text: text.to_owned(),
            end,
            colour: "#888",
        };
        let line = Timeline {
            name: "a & b".to_owned(),
            parts: vec![part("kernel", 2.0), part("<net>", 4.0)],
        };
        let svg = draw("Boots", &[line]);
        assert!(
            svg.contains("a &amp; b") && svg.contains("&lt;net&gt;: 2.00 s"),
            "{svg}"
        );
        let widths: Vec<&str> = svg
            .match_indices("width=\"380.0\"")
            .map(|(_, text)| text)
            .collect();
        assert_eq!(widths.len(), 2, "two halves of the scale: {svg}");
    }
}
