//! Tables asked for and publications that are there -> the SQL that brings them together. Pure.
//!
//! Whole rows, no column lists: a list makes the application's own DDL fail. Tables whose old rows the log cannot name
//! go to a second publication that publishes inserts only, since `publish` is a publication's: in the first one their
//! UPDATE and DELETE would be refused. Both are made before the slot, even if the second stays empty: the walsender
//! looks publications up as they were when a change was written, and up to PostgreSQL 17 fails where one was not there
//! yet.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::{catalog::CatalogTable, fault::SlotFault};
use crate::{finding::Finding, lsn::Lsn};

/// The comment that tells a publication of ours: it is kept in step with the config, and dropped with the slot.
pub(crate) const COMMENT: &str = "made by offshoot, and kept in step with its config";

/// The same comment once the slot has been made. A slot that is gone although this says that it was there is a gap, and
/// not a first start: also after a fail-over, which takes the comment along and may leave the slot behind.
pub(crate) fn comment_with_slot(slot: &str) -> String {
    format!("{COMMENT}; slot {slot} was made")
}

/// A publication as the catalog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) name: String,
    pub(crate) ours: bool,
    /// The whole comment.
    pub(crate) comment: String,
    pub(crate) all_tables: bool,
    pub(crate) schemas: Vec<String>,
    pub(crate) tables: Vec<PublishedTable>,
    /// Of insert, update, delete and truncate.
    pub(crate) publishes: Vec<&'static str>,
    pub(crate) via_root: bool,
}

/// A table of a publication that lists its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PublishedTable {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) column_list: bool,
    pub(crate) row_filter: bool,
}

/// The two publications as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publications {
    /// By the name of the config.
    pub(crate) rows: Option<Publication>,
    /// Its companion for keyless tables.
    pub(crate) inserts: Option<Publication>,
}

/// What is to be done, and what is to be said.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// To be run in one transaction.
    pub(crate) statements: Vec<String>,
    /// What the walsender is asked for.
    pub(crate) names: Vec<String>,
    /// Tables are published by their names, and by those of their roots.
    pub(crate) lists_tables: bool,
    /// Tables that join publications which are already streamed.
    pub(crate) joining: Vec<String>,
    /// The tables whose rows leave, schema and name.
    pub(crate) tables: Vec<(String, String)>,
    /// What `check` says of the publications.
    pub(crate) findings: Vec<Finding>,
}

/// What cannot be planned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublicationFault {
    #[error(transparent)]
    Gone(#[from] SlotFault),
    #[error(
        "publish {tables}: publication {publication} is for whole schemas and does not have them; {sql}, or take them \
         out of changes.tables"
    )]
    NotInSchemas { publication: String, tables: String, sql: String },
    #[error(
        "publish the inserts of {tables}, which have neither a primary key nor full identity: publication {publication} \
         is not there, and slot {slot} is older than it would be; give them a key or REPLICA IDENTITY FULL, put them \
         into changes.except, or start again after `offshoot drop`"
    )]
    NoInserts { publication: String, tables: String, slot: String },
    #[error(
        "publish the inserts of {tables}: publication {publication} publishes more than inserts, and their UPDATE and \
         DELETE would fail; ALTER PUBLICATION {publication} SET (publish = 'insert')"
    )]
    MoreThanInserts { publication: String, tables: String },
}

/// The name of the companion that publishes inserts only.
pub(crate) fn inserts_name(publication: &str) -> String {
    format!("{publication}_inserts")
}

/// How the publications that are there become the ones that are asked for.
///
/// `kept` says whether publications of ours are kept in step; otherwise only what is missing is planned. `confirmed`
/// is where the slot stands, if it is there.
pub(crate) fn plan(
    name: &str,
    there: &Publications,
    wanted: &[&CatalogTable],
    slot: &str,
    confirmed: Option<Lsn>,
    kept: bool,
) -> Result<Plan, PublicationFault> {
    let mut plan = Plan { names: vec![name.to_owned()], lists_tables: true, ..Plan::default() };
    let inserts_name = inserts_name(name);
    let Some(rows) = &there.rows else {
        if let Some(confirmed) = confirmed {
            return Err(SlotFault::PublicationGone { publication: name.into(), slot: slot.into(), confirmed }.into());
        }
        let (identified, keyless): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|table| table.identified);
        plan.create(name, &identified, "insert, update, delete, truncate", kept);
        plan.inserts(&inserts_name, there.inserts.as_ref(), &keyless, None, kept)?;
        return Ok(plan);
    };
    if confirmed.is_none() && rows.comment == comment_with_slot(slot) {
        return Err(SlotFault::Gone { slot: slot.into(), publication: name.into() }.into());
    }
    let slot = confirmed.map(|_| slot);
    plan.look_at(rows, wanted);
    let ours = kept && rows.ours;
    let fixed = rows.all_tables || !rows.schemas.is_empty();
    plan.lists_tables = !fixed;
    let (covered, missing): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|table| rows.covers(table));
    let (add, mut keyless): (Vec<_>, Vec<_>) = missing.into_iter().partition(|table| table.identified);
    if fixed && !add.is_empty() {
        let (publication, tables) = (name.to_owned(), names(&add));
        let sql = format!("ALTER PUBLICATION {} ADD TABLE {}", escape_identifier(name), sql_list(&add));
        return Err(PublicationFault::NotInSchemas { publication, tables, sql });
    }
    if ours && !fixed {
        // One that lost its identity would make the application's UPDATE fail; one that nobody asks for costs.
        let lost: Vec<_> = covered.iter().copied().filter(|table| !table.identified).collect();
        let unwanted = rows.tables.iter().filter(|table| !wanted.iter().any(|wanted| table.is(wanted)));
        let leaving = lost.iter().map(|table| sql_name(&table.schema, &table.name));
        let leaving: Vec<_> = leaving.chain(unwanted.map(|table| sql_name(&table.schema, &table.name))).collect();
        plan.alter(name, "DROP", &leaving);
        keyless.extend(lost);
    }
    let joining: Vec<_> = add.iter().map(|table| sql_name(&table.schema, &table.name)).collect();
    plan.alter(name, "ADD", &joining);
    plan.joining.extend(add.iter().map(|table| table.full_name()));
    if there.inserts.is_some() || !keyless.is_empty() || (slot.is_none() && !rows.all_tables) {
        plan.inserts(&inserts_name, there.inserts.as_ref(), &keyless, slot, kept)?;
    }
    Ok(plan)
}

impl Plan {
    fn create(&mut self, name: &str, tables: &[&CatalogTable], publish: &str, ours: bool) {
        let publication = escape_identifier(name);
        let tables = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", sql_list(tables)) };
        self.statements.push(format!("CREATE PUBLICATION {publication}{tables} WITH (publish = '{publish}')"));
        if ours {
            self.statements.push(format!("COMMENT ON PUBLICATION {publication} IS {}", escape_literal(COMMENT).trim()));
        }
    }

    fn alter(&mut self, name: &str, verb: &str, tables: &[String]) {
        if !tables.is_empty() {
            let (name, tables) = (escape_identifier(name), tables.join(", "));
            self.statements.push(format!("ALTER PUBLICATION {name} {verb} TABLE {tables}"));
        }
    }

    /// Brings the companion to hold `keyless`.
    fn inserts(
        &mut self,
        name: &str,
        there: Option<&Publication>,
        keyless: &[&CatalogTable],
        slot: Option<&str>,
        kept: bool,
    ) -> Result<(), PublicationFault> {
        self.names.push(name.to_owned());
        for table in keyless {
            let what = format!("neither a primary key nor full identity: only its inserts are told, by {name}");
            let sql = format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL;  -- or a primary key",
                sql_name(&table.schema, &table.name)
            );
            self.findings.push(Finding::warning(what, sql).about(table.full_name()));
        }
        let Some(there) = there else {
            if let Some(slot) = slot {
                let (publication, tables) = (name.to_owned(), names(keyless));
                return Err(PublicationFault::NoInserts { publication, tables, slot: slot.into() });
            }
            self.create(name, keyless, "insert", kept);
            return Ok(());
        };
        let add: Vec<_> = keyless.iter().copied().filter(|table| !there.covers(table)).collect();
        if !add.is_empty() && there.breaks_keyless() {
            let (publication, tables) = (name.to_owned(), names(&add));
            return Err(PublicationFault::MoreThanInserts { publication, tables });
        }
        if kept && there.ours {
            let leaving = there.tables.iter().filter(|table| !keyless.iter().any(|keyless| table.is(keyless)));
            let leaving: Vec<_> = leaving.map(|table| sql_name(&table.schema, &table.name)).collect();
            self.alter(name, "DROP", &leaving);
        }
        let joining: Vec<_> = add.iter().map(|table| sql_name(&table.schema, &table.name)).collect();
        self.alter(name, "ADD", &joining);
        self.joining.extend(add.iter().map(|table| table.full_name()));
        Ok(())
    }

    /// What is there and may surprise.
    fn look_at(&mut self, rows: &Publication, wanted: &[&CatalogTable]) {
        let name = &rows.name;
        if rows.publishes.len() < 4 {
            let what = format!("publication {name} publishes only {}", rows.publishes.join(", "));
            let sql = "SET (publish = 'insert, update, delete, truncate');";
            self.findings.push(Finding::warning(what, format!("ALTER PUBLICATION {} {sql}", escape_identifier(name))));
        }
        if rows.via_root {
            let what =
                format!("publication {name} publishes via the partition root: TRUNCATE of one partition is not told");
            let sql = "SET (publish_via_partition_root = false);";
            self.findings.push(Finding::warning(what, format!("ALTER PUBLICATION {} {sql}", escape_identifier(name))));
        }
        for table in rows.tables.iter().filter(|table| wanted.iter().any(|wanted| table.is(wanted))) {
            let table_name = format!("{}.{}", table.schema, table.name);
            if table.column_list {
                let what = format!(
                    "publication {name} has a column list for {table_name}: other columns are not told, and the \
                     application's DROP COLUMN and ALTER TYPE on listed ones fail"
                );
                self.findings.push(Finding::warning(what, "list the table without columns".into()));
            }
            if table.row_filter {
                let what =
                    format!("publication {name} has a row filter for {table_name}: rows outside it are not told");
                self.findings.push(Finding::warning(what, "list the table without WHERE".into()));
            }
        }
        if rows.ours || !rows.breaks_keyless() {
            return;
        }
        for table in wanted.iter().filter(|table| !table.identified && rows.covers(table)) {
            let what = format!(
                "neither a primary key nor full identity, and publication {name} publishes updates and deletes: the \
                 application's UPDATE and DELETE on it fail"
            );
            let sql = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", sql_name(&table.schema, &table.name));
            self.findings.push(Finding::cross(what, sql).about(table.full_name()));
        }
    }
}

impl Publication {
    fn covers(&self, table: &CatalogTable) -> bool {
        let listed = |schema: &str, name: &str| {
            let named = self.tables.iter().any(|listed| listed.schema == schema && listed.name == name);
            named || self.schemas.iter().any(|listed| listed == schema)
        };
        let by_root = table.root.as_ref().is_some_and(|(schema, name)| listed(schema, name));
        self.all_tables || by_root || listed(&table.schema, &table.name)
    }

    fn breaks_keyless(&self) -> bool {
        self.publishes.iter().any(|operation| matches!(*operation, "update" | "delete"))
    }
}

impl PublishedTable {
    fn is(&self, table: &CatalogTable) -> bool {
        self.schema == table.schema && self.name == table.name
    }
}

fn names(tables: &[&CatalogTable]) -> String {
    tables.iter().map(|table| table.full_name()).collect::<Vec<_>>().join(", ")
}

fn sql_list(tables: &[&CatalogTable]) -> String {
    tables.iter().map(|table| sql_name(&table.schema, &table.name)).collect::<Vec<_>>().join(", ")
}

/// ONLY: a table that inherits is asked for by its own name.
fn sql_name(schema: &str, name: &str) -> String {
    format!("ONLY {}.{}", escape_identifier(schema), escape_identifier(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&str] = &["insert", "update", "delete", "truncate"];

    fn table(name: &str, identified: bool) -> CatalogTable {
        CatalogTable {
            schema: "public".into(),
            name: name.into(),
            root: None,
            partitioned: false,
            unlogged: false,
            identified,
        }
    }

    fn listing(name: &str, ours: bool, publishes: &[&'static str], tables: &[&str]) -> Publication {
        let listed =
            |name: &&str| PublishedTable { schema: "public".into(), name: name.to_string(), ..Default::default() };
        Publication {
            name: name.into(),
            ours,
            publishes: publishes.to_vec(),
            tables: tables.iter().map(listed).collect(),
            ..Default::default()
        }
    }

    fn pair(ours: bool, rows: &[&str], inserts: &[&str]) -> Publications {
        Publications {
            rows: Some(listing("p", ours, ALL, rows)),
            inserts: Some(listing("p_inserts", ours, &["insert"], inserts)),
        }
    }

    fn planned(there: &Publications, wanted: &[CatalogTable], slot: bool) -> Result<Plan, PublicationFault> {
        plan("p", there, &wanted.iter().collect::<Vec<_>>(), "s", slot.then_some(Lsn(1)), true)
    }

    #[test]
    fn makes_both_before_the_slot() {
        let plan = planned(&Publications::default(), &[table("a", true), table("log", false)], false).unwrap();
        assert_eq!(
            plan.statements,
            [
                r#"CREATE PUBLICATION "p" FOR TABLE ONLY "public"."a" WITH (publish = 'insert, update, delete, truncate')"#,
                r#"COMMENT ON PUBLICATION "p" IS 'made by offshoot, and kept in step with its config'"#,
                r#"CREATE PUBLICATION "p_inserts" FOR TABLE ONLY "public"."log" WITH (publish = 'insert')"#,
                r#"COMMENT ON PUBLICATION "p_inserts" IS 'made by offshoot, and kept in step with its config'"#,
            ]
        );
        assert_eq!(plan.names, ["p", "p_inserts"]);
        let empty = planned(&Publications::default(), &[table("a", true)], false).unwrap();
        assert_eq!(empty.statements[2], r#"CREATE PUBLICATION "p_inserts" WITH (publish = 'insert')"#);
    }

    #[test]
    fn changes_nothing_when_nothing_changed() {
        let plan = planned(&pair(true, &["a"], &["log"]), &[table("a", true), table("log", false)], true).unwrap();
        assert!(plan.statements.is_empty() && plan.findings.len() == 1, "{plan:?}");
    }

    #[test]
    fn a_table_moves_with_its_identity() {
        let wanted = [table("lost", false), table("won", true)];
        let plan = planned(&pair(true, &["lost"], &["won"]), &wanted, true).unwrap();
        assert_eq!(
            plan.statements,
            [
                r#"ALTER PUBLICATION "p" DROP TABLE ONLY "public"."lost""#,
                r#"ALTER PUBLICATION "p" ADD TABLE ONLY "public"."won""#,
                r#"ALTER PUBLICATION "p_inserts" DROP TABLE ONLY "public"."won""#,
                r#"ALTER PUBLICATION "p_inserts" ADD TABLE ONLY "public"."lost""#,
            ]
        );
    }

    #[test]
    fn a_publication_of_another_is_added_to_and_not_changed_otherwise() {
        let wanted = [table("a", true), table("keyless", false), table("new", true)];
        let there = pair(false, &["a", "keyless", "other"], &[]);
        let plan = planned(&there, &wanted, true).unwrap();
        assert_eq!(plan.statements, [r#"ALTER PUBLICATION "p" ADD TABLE ONLY "public"."new""#]);
        assert_eq!(plan.joining, ["public.new"]);
        let finding = &plan.findings[0];
        assert_eq!((finding.about.as_str(), finding.level), ("public.keyless", crate::finding::Level::Cross));
    }

    #[test]
    fn one_for_all_tables_is_used_as_it_is() {
        let all = Publication { all_tables: true, ..listing("p", false, ALL, &[]) };
        let there = Publications { rows: Some(all), inserts: None };
        let plan = planned(&there, &[table("a", true), table("log", false)], false).unwrap();
        assert!(plan.statements.is_empty());
        assert_eq!(plan.names, ["p"]);
        assert_eq!(plan.findings.len(), 1);
    }

    #[test]
    fn one_for_schemas_is_used_as_it_is() {
        let schemas = Publication { schemas: vec!["public".into()], ..listing("p", false, ALL, &[]) };
        let there = Publications { rows: Some(schemas), inserts: None };
        assert!(planned(&there, &[table("a", true)], true).unwrap().statements.is_empty());
        let elsewhere = CatalogTable { schema: "sales".into(), ..table("a", true) };
        let error = planned(&there, &[elsewhere], true).unwrap_err().to_string();
        assert!(error.contains(r#"ALTER PUBLICATION "p" ADD TABLE ONLY "sales"."a""#), "{error}");
    }

    #[test]
    fn a_publication_that_is_gone_is_a_gap() {
        let error = planned(&Publications::default(), &[table("a", true)], true).unwrap_err();
        assert!(matches!(error, PublicationFault::Gone(_)));
    }

    #[test]
    fn a_slot_that_was_there_and_is_gone_is_a_gap() {
        let mut there = pair(true, &["a"], &[]);
        assert!(planned(&there, &[table("a", true)], false).is_ok());
        there.rows.as_mut().unwrap().comment = comment_with_slot("s");
        assert!(planned(&there, &[table("a", true)], true).is_ok());
        let error = planned(&there, &[table("a", true)], false).unwrap_err();
        assert!(matches!(error, PublicationFault::Gone(SlotFault::Gone { .. })));
    }

    #[test]
    fn never_asks_a_slot_for_a_publication_younger_than_itself() {
        let there = Publications { rows: Some(listing("p", false, ALL, &["a"])), inserts: None };
        assert_eq!(planned(&there, &[table("a", true)], true).unwrap().names, ["p"]);
        let error = planned(&there, &[table("a", true), table("log", false)], true).unwrap_err();
        assert!(matches!(error, PublicationFault::NoInserts { .. }));
    }

    #[test]
    fn never_breaks_the_updates_of_a_keyless_table() {
        let mut there = pair(false, &["a"], &[]);
        there.inserts.as_mut().unwrap().publishes = ALL.to_vec();
        let error = planned(&there, &[table("a", true), table("log", false)], true).unwrap_err();
        assert!(matches!(error, PublicationFault::MoreThanInserts { .. }));
    }
}
