//! Event mappings as given: tables of the file (`[event-mapping."TOPIC"]`), and the setting `event-mapping`, whose values
//! override single fields of those.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layers::{Layers, Source, as_text};
use super::parse::{Reader, setting};
use super::table::EVENT_MAPPING as NAME;
use crate::model::event::Mapping;

/// Fields and their values, by topic.
type Given = BTreeMap<String, BTreeMap<String, Vec<String>>>;

impl Layers {
    /// Adds the tables of a file. TOML reads an unquoted topic with dots as nested tables.
    pub(super) fn give_mappings(&mut self, prefix: &str, topics: &toml::Table) {
        for (name, value) in topics {
            let topic = format!("{prefix}{name}");
            let toml::Value::Table(fields) = value else {
                self.mistakes.push(format!(
                    "{NAME}.{topic} in the file must be a table, as in [{NAME}.\"{topic}\"]"
                ));
                continue;
            };
            let (inner, fields): (toml::Table, toml::Table) = fields
                .clone()
                .into_iter()
                .partition(|(_, value)| value.is_table());
            self.give_mappings(&format!("{topic}."), &inner);
            for (field, value) in fields {
                let values = match &value {
                    toml::Value::Array(values) => values.iter().map(as_text).collect(),
                    value => as_text(value).map(|text| vec![text]),
                };
                match values {
                    Some(values) => {
                        self.mappings.insert((topic.clone(), field), values);
                    }
                    None => self.mistakes.push(format!(
                        "{NAME}.\"{topic}\": {field} must be a value or a list of values"
                    )),
                }
            }
        }
    }

    /// The fields that the file gives, as rows: name and value.
    pub(super) fn mapping_rows(&self) -> impl Iterator<Item = (String, String)> {
        self.mappings.iter().map(|((topic, field), values)| {
            (format!("{NAME}.\"{topic}\".{field}"), values.join(";"))
        })
    }
}

impl Reader<'_> {
    /// `None` if any mapping is invalid.
    pub(super) fn event_mappings(
        &mut self,
        events: Option<&[String]>,
    ) -> Option<Arc<BTreeMap<String, Mapping>>> {
        let before = self.mistakes.len();
        let mut given = Given::new();
        for ((topic, field), values) in &self.layers.mappings {
            let fields = given.entry(topic.clone()).or_default();
            fields.insert(field.clone(), values.clone());
        }
        let setting = setting(NAME)?;
        for source in [Source::File, Source::Environment, Source::Flag] {
            let Some(value) = self.layers.given(setting, source) else {
                continue;
            };
            match entries(value) {
                Some(entries) => {
                    for (topic, field, values) in entries {
                        given.entry(topic).or_default().insert(field, values);
                    }
                }
                None => self.refuse(setting, value, source),
            }
        }
        let mut mappings = BTreeMap::new();
        for (topic, fields) in given {
            if let Some(events) = events
                && !events.contains(&topic)
            {
                self.mistakes.push(format!(
                    "{NAME}.\"{topic}\": not an event topic (--events {}); correct the name, or add the topic to --events",
                    events.join(",")
                ));
            }
            match Mapping::read(&fields) {
                Ok(mapping) => {
                    mappings.insert(topic, mapping);
                }
                Err(mistakes) => {
                    let named = mistakes
                        .into_iter()
                        .map(|mistake| format!("{NAME}.\"{topic}\": {mistake}"));
                    self.mistakes.extend(named);
                }
            }
        }
        (self.mistakes.len() == before).then(|| Arc::new(mappings))
    }
}

/// The topics, fields and values of a text such as `a=debezium-outbox,a:type=header:kind;topic`.
fn entries(text: &str) -> Option<Vec<(String, String, Vec<String>)>> {
    let items = text.split(',').map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    let each = items.map(|item| {
        let (name, value) = item.split_once('=')?;
        let (topic, field) = name.split_once(':').unwrap_or((name, "preset"));
        let values = value.split(';').map(|value| value.trim().to_owned());
        let (topic, field) = (topic.trim(), field.trim());
        let is_named = !topic.is_empty() && !field.is_empty();
        is_named.then(|| (topic.to_owned(), field.to_owned(), values.collect()))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::super::{Settings, effective};
    use super::*;

    fn layers(file: &str) -> Layers {
        let mut layers = Layers::new();
        layers.give("brokers", Source::Flag, "b:1");
        layers.give("events", Source::Flag, "outbox.event.order,orders");
        layers.give_file(file, "f");
        layers
    }

    fn mistakes(layers: &Layers) -> String {
        let mistakes = Settings::check(layers, &machine()).unwrap_err();
        mistakes.join("\n")
    }

    fn mapping(fields: &[(&str, &str)]) -> Mapping {
        let each = fields.iter().map(|(name, values)| {
            let values = values.split(';').map(str::to_owned).collect();
            ((*name).to_owned(), values)
        });
        Mapping::read(&each.collect()).unwrap()
    }

    #[test]
    fn tables_of_the_file_and_flags_make_one_mapping_a_topic() {
        let mut layers = layers(
            r#"
            [event-mapping."outbox.event.order"]
            preset = "debezium-outbox"
            type = ["header:kind", "topic"]
            unwrap = false
            [event-mapping.orders]
            id = "json:meta.id"
            type = "const:order.changed, twice"
            "#,
        );
        layers.give(
            NAME,
            Source::Environment,
            "outbox.event.order:subject=none,orders:id=key",
        );
        layers.give(
            NAME,
            Source::Flag,
            " orders:id=header:id;json:id , outbox.event.order:type=const:a",
        );
        let settings = Settings::check(&layers, &machine()).unwrap();
        assert_eq!(settings.event_mappings.len(), 2);
        assert_eq!(
            settings.event_mappings["outbox.event.order"],
            mapping(&[
                ("preset", "debezium-outbox"),
                ("type", "const:a"),
                ("subject", "none"),
                ("unwrap", "false"),
            ])
        );
        assert_eq!(
            settings.event_mappings["orders"],
            mapping(&[
                ("id", "header:id;json:id"),
                ("type", "const:order.changed, twice"),
            ])
        );
        let rows = effective(&layers, &machine());
        let row = |name: &str| {
            let row = rows.iter().find(|row| row.name == name).unwrap();
            (row.value.as_str(), row.source)
        };
        assert_eq!(
            row(r#"event-mapping."outbox.event.order".type"#),
            ("header:kind;topic", "file")
        );
        assert_eq!(row(NAME).1, "flag");
    }

    #[test]
    fn a_topic_with_dots_needs_no_quotation_marks() {
        let layers = layers("[event-mapping.outbox.event.order]\npreset = 'debezium-outbox'\n");
        let settings = Settings::check(&layers, &machine()).unwrap();
        let topics: Vec<_> = settings.event_mappings.keys().collect();
        assert_eq!(topics, ["outbox.event.order"]);
    }

    #[test]
    fn a_preset_may_be_given_in_the_file_as_text() {
        let layers = layers("event-mapping = ['orders=spring-cloud-stream']\n");
        let settings = Settings::check(&layers, &machine()).unwrap();
        assert!(settings.event_mappings.contains_key("orders"));
    }

    #[test]
    fn an_unknown_topic_field_or_preset_is_refused_with_the_others() {
        let text = mistakes(&layers(
            r#"
            [event-mapping."outbox.event.ordr"]
            preset = "debezium-outbox"
            [event-mapping.orders]
            preset = "debezium"
            kind = "key"
            id = {a = 1}
            subject = [["key"], {}]
            "#,
        ));
        for part in [
            r#"event-mapping."outbox.event.ordr": not an event topic (--events outbox.event.order,orders); correct the name, or add the topic to --events"#,
            r#"event-mapping."orders": unknown preset "debezium"; must be one of debezium-outbox,"#,
            r#"event-mapping."orders": unknown field "kind"; must be one of preset,"#,
            r#"event-mapping."orders": subject must be a value or a list of values"#,
            r#"event-mapping."orders.id": not an event topic"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        for wrong in ["orders", "=debezium-outbox", "orders:=key", ":id=key"] {
            let mut layers = layers("");
            layers.give(NAME, Source::Flag, wrong);
            let text = mistakes(&layers);
            assert!(
                text.starts_with(&format!(
                    "--event-mapping: invalid value {wrong:?} (flag); allowed: a topic of --events and"
                )),
                "{text}"
            );
        }
        let text = mistakes(&layers("[event-mapping]\norders = 'debezium-outbox'\n"));
        assert!(
            text.contains(r#"event-mapping.orders in the file must be a table"#),
            "{text}"
        );
    }
}
