//! The figures as a table, and as JSON.

/// One figure.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// What was measured, one value or a series.
    pub(crate) values: Vec<f64>,
    pub(crate) unit: &'static str,
    /// At most.
    pub(crate) goal: Option<f64>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            values: vec![value],
            unit,
            goal: None,
        }
    }

    pub(crate) fn at_most(self, goal: f64) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }

    pub(crate) fn is_met(&self) -> Option<bool> {
        self.goal
            .map(|goal| self.values.iter().all(|value| *value <= goal))
    }
}

/// A table in Markdown, columns aligned; of a series the least and the most.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut lines = vec![["figure", "measured", "goal", ""].map(str::to_owned)];
    lines.extend(figures.iter().map(cells));
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let [first, second, third, fourth] = [0, 1, 2, 3].map(width);
    let rule = format!(
        "|{}|{}:|{}:|{}|",
        "-".repeat(first + 2),
        "-".repeat(second + 1),
        "-".repeat(third + 1),
        "-".repeat(fourth + 2)
    );
    let mut text: Vec<String> = lines
        .iter()
        .map(|[name, measured, goal, verdict]| {
            format!("| {name:first$} | {measured:>second$} | {goal:>third$} | {verdict:fourth$} |")
        })
        .collect();
    text.insert(1, rule);
    text.join("\n") + "\n"
}

fn cells(figure: &Figure) -> [String; 4] {
    let least = figure.values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figure.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let measured = if figure.values.len() == 1 {
        number(most)
    } else {
        format!("{} to {}", number(least), number(most))
    };
    let with_unit = |text: String| format!("{text} {}", figure.unit).trim_end().to_owned();
    let verdict = figure.is_met().map(|met| if met { "met" } else { "missed" });
    [
        figure.name.clone(),
        with_unit(measured),
        figure
            .goal
            .map(|goal| with_unit(number(goal)))
            .unwrap_or_default(),
        verdict.unwrap_or_default().to_owned(),
    ]
}

/// Two digits behind the point where there is anything.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// One object a figure.
pub(crate) fn json(figures: &[Figure]) -> String {
    let objects: Vec<String> = figures
        .iter()
        .map(|figure| {
            let values: Vec<String> = figure.values.iter().map(|value| format!("{value:.3}")).collect();
            let goal = figure.goal.map_or("null".into(), |goal| format!("{goal:.3}"));
            format!(
                "  {{\"figure\": \"{}\", \"unit\": \"{}\", \"values\": [{}], \"goal\": {goal}}}",
                figure.name,
                figure.unit,
                values.join(", ")
            )
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}
