//! A table -> the topic of its changes. Pure.

use std::{collections::HashMap, sync::Arc};

use crate::{change::Table, sink::Topic};

/// What Kafka allows.
const NAME_LEN_MAX: usize = 249;

/// `changes.topic`, compiled, and which table has which topic.
#[derive(Debug)]
pub(super) struct Topics {
    parts: Vec<Part>,
    /// Whether each table is to have a topic of its own.
    apart: bool,
    owners: HashMap<String, Owner>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Schema,
    Table,
}

#[derive(Debug)]
struct Owner {
    oid: u32,
    schema: String,
    table: String,
}

/// `changes.topic` is no template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A word in braces that is not one of ours.
    #[error("changes.topic: there is no placeholder {{{0}}}; there are {{name}}, {{schema}} and {{table}}")]
    Unknown(String),
    /// A brace that is not one of a pair.
    #[error("changes.topic: a brace stands alone in {0:?}")]
    Brace(String),
}

/// A table has no topic.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Two tables have names that become one.
    #[error(
        "find a topic for {one}: {topic:?} carries {other} already; set `changes.topic` so that every table has its own"
    )]
    Shared {
        /// The table that comes second.
        one: String,
        /// The table that was there.
        other: String,
        /// The name that both come to.
        topic: String,
    },
    /// Kafka refuses such a name.
    #[error(
        "find a topic for {table}: {topic:?} is no name that Kafka takes (1 to 249 characters); set `changes.topic`"
    )]
    Illegal {
        /// Whose topic.
        table: String,
        /// The name that it comes to.
        topic: String,
    },
}

impl Topics {
    pub(super) fn new(template: &str, name: &str) -> Result<Self, TemplateError> {
        let stray = || TemplateError::Brace(template.into());
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some(brace) = rest.find(['{', '}']) {
            let (text, opened) = rest.split_at(brace);
            let (word, after) = opened.strip_prefix('{').and_then(|word| word.split_once('}')).ok_or_else(stray)?;
            parts.push(Part::Text(text.into()));
            parts.push(match word {
                "name" => Part::Text(name.into()),
                "schema" => Part::Schema,
                "table" => Part::Table,
                _ if word.contains('{') => return Err(stray()),
                _ => return Err(TemplateError::Unknown(word.into())),
            });
            rest = after;
        }
        parts.push(Part::Text(rest.into()));
        let apart = parts.contains(&Part::Table);
        Ok(Self { parts, apart, owners: HashMap::new() })
    }

    /// The topics of tables of one moment, each named once, in the order of the tables.
    pub(super) fn all(&self, tables: &[(String, String)]) -> Result<Vec<String>, TopicError> {
        let mut owners: HashMap<String, &(String, String)> = HashMap::new();
        let mut names = Vec::new();
        for table in tables {
            let name = self.name(&table.0, &table.1)?;
            match owners.insert(name.clone(), table) {
                None => names.push(name),
                Some(_) if !self.apart => {}
                Some(other) => {
                    let [one, other] = [table, other].map(|(schema, name)| format!("{schema}.{name}"));
                    return Err(TopicError::Shared { one, other, topic: name });
                }
            }
        }
        Ok(names)
    }

    fn name(&self, schema: &str, table: &str) -> Result<String, TopicError> {
        let of = |part: &Part| match part {
            Part::Text(text) => sanitised(text),
            Part::Schema => sanitised(schema),
            Part::Table => sanitised(table),
        };
        let name: String = self.parts.iter().map(of).collect();
        if name.is_empty() || name.len() > NAME_LEN_MAX || name == "." || name == ".." {
            return Err(TopicError::Illegal { table: format!("{schema}.{table}"), topic: name });
        }
        Ok(name)
    }

    /// The topic of a table; remembers whose it is.
    pub(super) fn of(&mut self, table: &Table) -> Result<Arc<Topic>, TopicError> {
        let name = self.name(&table.schema, &table.name)?;
        let described = format!("{}.{}", table.schema, table.name);
        if let Some(owner) = self.owners.get(&name).filter(|_| self.apart)
            // Dropped and made again, or renamed: still one table.
            && owner.oid != table.oid
            && (owner.schema != table.schema || owner.table != table.name)
        {
            let other = format!("{}.{}", owner.schema, owner.table);
            return Err(TopicError::Shared { one: described, other, topic: name });
        }
        let owner = Owner { oid: table.oid, schema: table.schema.clone(), table: table.name.clone() };
        self.owners.insert(name.clone(), owner);
        Ok(Arc::new(Topic { name, table: described }))
    }
}

/// Replaces each character that a topic cannot have by `_`, and as Java counts them: two for one beyond 16 bits.
fn sanitised(text: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        match legal(c) {
            true => name.push(c),
            false => (0..c.len_utf16()).for_each(|_| name.push('_')),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Asked, Identity};

    fn table(oid: u32, schema: &str, name: &str) -> Table {
        let (schema, name) = (schema.into(), name.into());
        Table {
            version: 1,
            oid,
            schema,
            name,
            ancestors: vec![],
            identity: Identity::Default,
            asked: Asked::CHANGES,
            columns: vec![],
            key: vec![],
        }
    }

    #[test]
    fn names_topics_as_debezium_does() {
        let mut topics = Topics::new("{name}.{schema}.{table}", "g").unwrap();
        for (oid, (schema, name, topic)) in [
            ("public", "golden_end", "g.public.golden_end"),
            ("My Schema", "Order Items", "g.My_Schema.Order_Items"),
            ("public", "dotted.name", "g.public.dotted.name"),
            ("public", "größe", "g.public.gr__e"),
            ("public", "with\"quote", "g.public.with_quote"),
            ("public", "it's", "g.public.it_s"),
            ("public", "😀-1", "g.public.__-1"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(topics.of(&table(oid as u32, schema, name)).unwrap().name, topic);
        }
    }

    #[test]
    fn two_tables_never_share_a_topic_by_accident() {
        let mut topics = Topics::new("{name}.{schema}.{table}", "g").unwrap();
        topics.of(&table(1, "public", "a_b")).unwrap();
        let error = topics.of(&table(2, "public", "a b")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "find a topic for public.a b: \"g.public.a_b\" carries public.a_b already; set `changes.topic` so that every \
             table has its own"
        );
        assert!(topics.of(&table(3, "public", "a_b")).is_ok(), "dropped and made again");
        assert!(topics.of(&table(3, "public", "a b")).is_ok(), "renamed");

        let mut topics = Topics::new("{table}", "g").unwrap();
        topics.of(&table(1, "one", "t")).unwrap();
        assert!(topics.of(&table(2, "two", "t")).is_err());
    }

    #[test]
    fn topics_are_known_before_the_first_row() {
        let tables =
            |names: &[&str]| names.iter().map(|name| ("public".to_owned(), name.to_string())).collect::<Vec<_>>();
        let all = |template: &str, names: &[&str]| Topics::new(template, "g").unwrap().all(&tables(names));
        assert_eq!(all("{name}.{table}", &["a", "b"]).unwrap(), ["g.a", "g.b"]);
        assert_eq!(all("{name}.all", &["a", "b"]).unwrap(), ["g.all"]);
        let shared = all("{name}.{table}", &["a_b", "a b"]).unwrap_err();
        assert!(
            matches!(&shared, TopicError::Shared { one, other, .. } if one == "public.a b" && other == "public.a_b")
        );
    }

    #[test]
    fn tables_share_a_topic_that_does_not_name_them() {
        let mut topics = Topics::new("all.{schema}", "g").unwrap();
        assert_eq!(topics.of(&table(1, "public", "a")).unwrap().name, "all.public");
        let second = topics.of(&table(2, "public", "b")).unwrap();
        assert_eq!((second.name.as_str(), second.table.as_str()), ("all.public", "public.b"));
    }

    #[test]
    fn refuses_a_template_that_is_none() {
        let error = |template| Topics::new(template, "g").unwrap_err().to_string();
        assert_eq!(
            error("{tabel}"),
            "changes.topic: there is no placeholder {tabel}; there are {name}, {schema} and {table}"
        );
        for template in ["{name", "name}", "{{name}}", "}{"] {
            assert!(error(template).contains("stands alone"), "{template}: {}", error(template));
        }
    }

    #[test]
    fn refuses_a_name_that_kafka_does_not_take() {
        for template in ["", ".", "..", &"x".repeat(250)] {
            let mut topics = Topics::new(template, "g").unwrap();
            assert!(matches!(topics.of(&table(1, "s", "t")), Err(TopicError::Illegal { .. })), "{template:?}");
        }
    }
}
