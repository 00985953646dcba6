//! Results -> bars of each shape's rates, as ratios to the plain reader, in SVG. On a dark page text is light.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    readers::{Kind, Reader},
    results::{Drained, Results},
};

const SIZE: (u32, u32) = (1080, 460);
const LEFT: i32 = 14;
/// There a bar ends; above it stands how far the highest would go.
const RATIO_MAX: f64 = 3.0;
/// What text and lines have where a viewer knows no style sheets: readable on both.
const INK: RGBColor = RGBColor(0x76, 0x7e, 0x88);
/// The plain reader is a line.
const PLAIN: RGBColor = RGBColor(0xd1, 0x24, 0x2f);
const STYLE: &str = "<style>text{fill:#24292f;font-family:system-ui,sans-serif}\
    @media (prefers-color-scheme:dark){text{fill:#e6edf3}}</style>";

/// Who has a bar, and in which colour; in the order of the legend.
const BARS: [(Kind, &str, RGBColor); 8] = [
    (Kind::Eager, "eager reader", RGBColor(0xb0, 0xb8, 0xc1)),
    (Kind::PgRecvlogical, "pg_recvlogical", RGBColor(0x8a, 0x93, 0x9e)),
    (Kind::Best, "best reader", RGBColor(0x64, 0x6d, 0x78)),
    (Kind::ChangesAtLeastOnce, "changes, at least once", RGBColor(0x5a, 0xa9, 0xe6)),
    (Kind::ChangesExactlyOnce, "changes, exactly once", RGBColor(0x1f, 0x6f, 0xc4)),
    (Kind::Events, "events", RGBColor(0x2e, 0xa0, 0x6a)),
    (Kind::EventsWithReplica, "events, replica", RGBColor(0xd9, 0x8a, 0x1f)),
    (Kind::Debezium, "Debezium", RGBColor(0xc8, 0x4b, 0x4b)),
];

/// The chart; `None` where nothing has a ratio.
pub(crate) fn chart(results: &Results) -> Option<String> {
    let shapes: Vec<&Drained> =
        results.drained.iter().filter(|drained| drained.rate(Reader::of(Kind::Plain)).is_some()).collect();
    if shapes.is_empty() {
        return None;
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let (head, bars) = root.split_vertically(legend(&shapes).1);
        draw_legend(&head, &shapes).expect("a string takes everything");
        draw_bars(&bars, &shapes).expect("a string takes everything");
        root.present().expect("a string takes everything");
    }
    // Rules of a style sheet win over what the elements say of themselves.
    let (head, rest) = svg.split_once(">\n").expect("it has a first element");
    Some(format!("{head}>\n{STYLE}\n{rest}"))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Its ratio to plain: of one transaction with the larger memory, which is what one would give it.
fn ratio(drained: &Drained, kind: Kind) -> Option<f64> {
    let usual = Reader::of(kind);
    let reader = Reader { memory: drained.single && kind.publishes(), ..usual };
    drained.ratio(reader, Kind::Plain).or_else(|| drained.ratio(usual, Kind::Plain))
}

fn bars_of<'a>(shapes: &'a [&Drained]) -> impl Iterator<Item = &'static (Kind, &'static str, RGBColor)> + 'a {
    BARS.iter().filter(|(kind, ..)| shapes.iter().any(|drained| ratio(drained, *kind).is_some()))
}

fn text(size: u32, at: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK).pos(Pos::new(at, VPos::Center))
}

/// Where an entry of the legend is, its name, and its colour; the plain reader's is a line.
type Entry = (i32, i32, &'static str, Option<RGBColor>);

/// A swatch and a name, from the left, in as many lines as it takes: where each is, and how high that is.
fn legend(shapes: &[&Drained]) -> (Vec<Entry>, u32) {
    let bars = bars_of(shapes).map(|(_, name, colour)| (*name, Some(*colour)));
    let (mut x, mut y, mut all) = (LEFT, 37, Vec::new());
    for (name, colour) in [("plain reader", None)].into_iter().chain(bars) {
        let width = 18 + name.len() as i32 * 7;
        if x + width > SIZE.0 as i32 - LEFT {
            (x, y) = (LEFT, y + 19);
        }
        all.push((x, y, name, colour));
        x += width + 16;
    }
    (all, y as u32 + 15)
}

fn draw_legend<'a>(area: &Area<'a>, shapes: &[&Drained]) -> Drawn<'a> {
    let title = "rows a second, as a ratio to a plain reader that throws everything away";
    area.draw(&Text::new(title, (LEFT, 14), text(15, HPos::Left)))?;
    for (x, y, name, colour) in legend(shapes).0 {
        match colour {
            Some(colour) => area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], colour.filled()))?,
            None => area.draw(&PathElement::new([(x, y), (x + 12, y)], PLAIN.stroke_width(2)))?,
        }
        area.draw(&Text::new(name, (x + 18, y), text(14, HPos::Left)))?;
    }
    Ok(())
}

fn draw_bars<'a>(area: &Area<'a>, shapes: &[&Drained]) -> Drawn<'a> {
    let kinds: Vec<_> = bars_of(shapes).collect();
    let ratios = shapes.iter().flat_map(|drained| kinds.iter().filter_map(|(kind, ..)| ratio(drained, *kind)));
    let highest = ratios.fold(1.0, f64::max).min(RATIO_MAX);
    let (width, height) = area.dim_in_pixel();
    let (left, right, top, bottom) = (44, width as i32 - 14, 22, height as i32 - 34);
    let y = |ratio: f64| bottom - (ratio / (highest * 1.02) * f64::from(bottom - top)) as i32;

    let step = if highest > 1.6 { 0.5 } else { 0.2 };
    let lines = (0..).map(|n| f64::from(n) * step).take_while(|at| *at <= highest);
    for at in lines {
        area.draw(&PathElement::new([(left, y(at)), (right, y(at))], INK.mix(if at == 0.0 { 1.0 } else { 0.25 })))?;
        area.draw(&Text::new(format!("{at:.1}"), (left - 8, y(at)), text(13, HPos::Right)))?;
    }

    let group = f64::from(right - left) / shapes.len() as f64;
    let bar = (group * 0.84 / kinds.len() as f64).min(36.0);
    for (at, drained) in shapes.iter().enumerate() {
        let middle = f64::from(left) + (at as f64 + 0.5) * group;
        area.draw(&Text::new(drained.label.as_str(), (middle as i32, bottom + 17), text(14, HPos::Center)))?;
        let there: Vec<_> =
            kinds.iter().filter_map(|(kind, _, colour)| Some((ratio(drained, *kind)?, *colour))).collect();
        let most = there.iter().map(|(ratio, _)| *ratio).fold(0.0, f64::max);
        if most > RATIO_MAX {
            area.draw(&Text::new(format!("up to {most:.1}"), (middle as i32, top - 12), text(13, HPos::Center)))?;
        }
        let from = middle - bar * there.len() as f64 / 2.0;
        for (place, (ratio, colour)) in there.into_iter().enumerate() {
            let x = (from + place as f64 * bar) as i32;
            let end = (from + (place + 1) as f64 * bar) as i32 - 1;
            area.draw(&Rectangle::new([(x, y(ratio.min(highest))), (end, bottom)], colour.filled()))?;
        }
    }
    // The plain reader itself, over the bars.
    area.draw(&PathElement::new([(left, y(1.0)), (right, y(1.0))], PLAIN.stroke_width(2)))
}
