//! Tables and JSON: what was measured, beside what, and whether the target is met.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::Scale;
use crate::stage::Problem;

/// One line of the summary.
struct Line {
    measure: String,
    figure: String,
    target: String,
    met: Option<bool>,
}

pub struct Report {
    about: Vec<(String, String)>,
    summary: Vec<Line>,
    tables: String,
    json: Map<String, Value>,
}

impl Report {
    pub fn new(scale: &Scale) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |model| {
                model.trim_start_matches([' ', '\t', ':'])
            });
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let about = vec![
            (
                "machine".to_owned(),
                format!("{cores} cores of {model}, Linux {}", kernel.trim()),
            ),
            (
                "date".to_owned(),
                hookstream::model::event::rfc3339(hookstream::edge::clock::now()),
            ),
            (
                "runs".to_owned(),
                format!("{}{}", scale.runs, if scale.quick { ", quick" } else { "" }),
            ),
        ];
        Self {
            about,
            summary: Vec::new(),
            tables: String::new(),
            json: Map::new(),
        }
    }

    /// A line of the summary with a target.
    pub fn at_most(&mut self, measure: &str, figure: f64, unit: &str, most: f64) {
        self.line(
            measure,
            figure,
            unit,
            &format!("≤ {most}{unit}"),
            Some(figure <= most),
        );
    }

    pub fn at_least(&mut self, measure: &str, figure: f64, unit: &str, least: f64) {
        self.line(
            measure,
            figure,
            unit,
            &format!("≥ {least}{unit}"),
            Some(figure >= least),
        );
    }

    pub fn tells(&mut self, measure: &str, figure: f64, unit: &str) {
        self.line(measure, figure, unit, "", None);
    }

    fn line(&mut self, measure: &str, figure: f64, unit: &str, target: &str, met: Option<bool>) {
        let digits = if figure.abs() >= 1000.0 { 0 } else { 2 };
        eprintln!("  {measure}: {figure:.digits$}{unit}");
        self.json.insert(
            measure.to_owned(),
            json!({"figure": figure, "unit": unit.trim(), "target": target, "met": met}),
        );
        self.summary.push(Line {
            measure: measure.to_owned(),
            figure: format!("{figure:.digits$}{unit}"),
            target: target.to_owned(),
            met,
        });
    }

    /// A table of its own, below the summary.
    pub fn table(&mut self, title: &str, head: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
        let rule = vec!["---".to_owned(); head.len()];
        let body: String = rows.iter().map(|row| line(row)).collect();
        // Writing to a string does not fail.
        write!(
            self.tables,
            "\n{title}\n\n{}{}{body}",
            line(&head),
            line(&rule)
        )
        .ok();
    }

    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.about {
            writeln!(text, "{name}: {value}  ").ok();
        }
        text.push_str("\n| measure | figure | target | |\n|---|---|---|---|\n");
        for Line {
            measure,
            figure,
            target,
            met,
        } in &self.summary
        {
            let met = match met {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            writeln!(text, "| {measure} | {figure} | {target} | {met} |").ok();
        }
        text.push_str(&self.tables);
        text
    }

    pub fn write(&self) -> Result<(), Problem> {
        let mut json = self.json.clone();
        for (name, value) in &self.about {
            json.insert(name.clone(), Value::from(value.as_str()));
        }
        std::fs::write("target/bench/bench.md", self.markdown())?;
        std::fs::write(
            "target/bench/bench.json",
            serde_json::to_string_pretty(&json)?,
        )?;
        Ok(())
    }
}
