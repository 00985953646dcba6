//! Tables asked for and publications that are there -> the SQL that brings them together. Pure.
//!
//! Whole rows, no column lists unless `source.omit_columns` asks for them: a list makes the application's own DDL fail.
//! Tables whose old rows the log cannot name
//! go to a second publication that publishes inserts only, since `publish` is a publication's: in the first one their
//! UPDATE and DELETE would be refused. Both are made before the slot, even if the second stays empty: the walsender
//! looks publications up as they were when a change was written, and up to PostgreSQL 17 fails where one was not there
//! yet.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::{
    catalog::{CatalogTable, Narrow},
    fault::SlotFault,
};
use crate::{finding::Finding, lsn::Lsn};

/// The comment that tells a publication of ours: it is kept in step with the config, and dropped with the slot.
pub(crate) const COMMENT: &str = "made by offshoot, and kept in step with its config";

/// The same comment once the slot has been made.
fn comment_with_slot(slot: &str) -> String {
    format!("{COMMENT}; slot {slot} was made")
}

/// The same with the oids of the tables that are published: one that is taken out while nobody looks is known by it.
pub(crate) fn comment_with_tables(slot: &str, tables: &[u32]) -> String {
    let oids = tables.iter().map(|oid| format!(" {oid}")).collect::<String>();
    format!("{}{TABLES_ARE}{oids}", comment_with_slot(slot))
}

const TABLES_ARE: &str = "; it is of the tables";

/// A publication as the catalog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) oid: u32,
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
    /// Another one whenever the table is added again, also with another list or filter: nothing changes these in place.
    pub(crate) oid: u32,
    /// The table's.
    pub(crate) table: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The column list, in the table's order; `None` is all columns.
    pub(crate) columns: Option<Vec<String>>,
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
    /// Every transaction that could have written into them before they joined is older than this one.
    pub(crate) horizon: Option<u64>,
    /// Oids of the tables that are published when this is done.
    pub(crate) published: Vec<u32>,
    /// The tables whose rows are read, schema and name.
    pub(crate) tables: Vec<(String, String)>,
    /// Those of them that `changes` asks for.
    pub(crate) changes: Vec<(String, String)>,
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
    #[error(
        "leave out {omitted} of {table}: {why}, and the application's UPDATE and DELETE on it would fail; take {table} \
         out of source.omit_columns, or out of changes.tables"
    )]
    NarrowBreaks { table: String, omitted: String, why: &'static str },
    #[error(
        "leave out columns of {tables}: publication {publication} is for whole schemas or all tables, which have no \
         column lists; name another one in source.publication"
    )]
    NarrowFixed { publication: String, tables: String },
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
    let published = wanted.iter().map(|table| table.oid).collect();
    let mut plan = Plan { names: vec![name.to_owned()], lists_tables: true, published, ..Plan::default() };
    let inserts_name = inserts_name(name);
    let Some(rows) = &there.rows else {
        if let Some(confirmed) = confirmed {
            return Err(SlotFault::PublicationGone { publication: name.into(), slot: slot.into(), confirmed }.into());
        }
        let (identified, keyless): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|table| table.identified);
        narrow_fits(&identified)?;
        plan.create(name, &identified, "insert, update, delete, truncate", kept);
        plan.inserts(&inserts_name, there.inserts.as_ref(), &keyless, None, kept)?;
        plan.warn_of_lists(wanted);
        return Ok(plan);
    };
    let remembers = rows.comment.starts_with(&comment_with_slot(slot));
    let comment = comment_with_tables(slot, &plan.published);
    let slot = confirmed.map(|_| slot);
    plan.look_at(rows, wanted);
    let ours = kept && rows.ours;
    let fixed = rows.all_tables || !rows.schemas.is_empty();
    plan.lists_tables = !fixed;
    let (covered, missing): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|table| rows.covers(table));
    let (mut add, mut keyless): (Vec<_>, Vec<_>) = missing.into_iter().partition(|table| table.updates_fit());
    // One whose list came to break it goes with the keyless ones; one that has no list yet must not get such a list.
    let listed = |table: &CatalogTable| {
        let has_list = |publication: &Publication| publication.listing(table).is_some_and(|l| l.columns.is_some());
        has_list(rows) || there.inserts.as_ref().is_some_and(has_list)
    };
    let unlisted: Vec<_> = wanted.iter().copied().filter(|table| table.identified && !listed(table)).collect();
    narrow_fits(&unlisted)?;
    let narrow: Vec<_> = wanted.iter().copied().filter(|table| table.narrow.is_some()).collect();
    if fixed && !narrow.is_empty() {
        return Err(PublicationFault::NarrowFixed { publication: name.into(), tables: names(&narrow) });
    }
    if fixed && !add.is_empty() {
        let (publication, tables) = (name.to_owned(), names(&add));
        let sql = format!("ALTER PUBLICATION {} ADD TABLE {}", escape_identifier(name), sql_list(&add));
        return Err(PublicationFault::NotInSchemas { publication, tables, sql });
    }
    if ours && !fixed {
        // One that lost its identity would make the application's UPDATE fail; one that nobody asks for costs.
        let lost: Vec<_> = covered.iter().copied().filter(|table| !table.updates_fit()).collect();
        let unwanted = rows.tables.iter().filter(|table| !wanted.iter().any(|wanted| table.is(wanted)));
        let leaving = lost.iter().map(|table| sql_name(&table.schema, &table.name));
        let leaving: Vec<_> = leaving.chain(unwanted.map(|table| sql_name(&table.schema, &table.name))).collect();
        plan.alter(name, "DROP", &leaving);
        keyless.extend(lost);
    }
    // A list changes by leaving and joining in one transaction: nobody sees the table outside.
    let relisted = covered.iter().copied().filter(|table| table.updates_fit() && rows.lists_otherwise(table, ours));
    let relisted: Vec<_> = if fixed { Vec::new() } else { relisted.collect() };
    plan.alter(name, "DROP", &relisted.iter().map(|table| sql_name(&table.schema, &table.name)).collect::<Vec<_>>());
    add.extend(relisted);
    plan.alter(name, "ADD", &add.iter().map(|table| sql_entry(table)).collect::<Vec<_>>());
    let was_told =
        |table: &&CatalogTable| rows.covers(table) || there.inserts.as_ref().is_some_and(|i| i.covers(table));
    plan.joining.extend(add.iter().filter(|table| !was_told(table)).map(|table| table.full_name()));
    if there.inserts.is_some() || !keyless.is_empty() || (slot.is_none() && !rows.all_tables) {
        plan.inserts(&inserts_name, there.inserts.as_ref(), &keyless, slot, kept)?;
    }
    if !plan.statements.is_empty() && ours && remembers {
        plan.statements.push(format!(
            "COMMENT ON PUBLICATION {} IS {}",
            escape_identifier(name),
            escape_literal(&comment).trim()
        ));
    }
    plan.joining.retain(|name| !covered.iter().any(|table| table.full_name() == *name));
    plan.warn_of_lists(wanted);
    Ok(plan)
}

/// Refuses lists that would break the application.
fn narrow_fits(tables: &[&CatalogTable]) -> Result<(), PublicationFault> {
    for table in tables {
        if let Some(Narrow { omitted, breaks: Some(why), .. }) = &table.narrow {
            let (table, omitted) = (table.full_name(), omitted.join(", "));
            return Err(PublicationFault::NarrowBreaks { table, omitted, why });
        }
    }
    Ok(())
}

/// The migrations that Postgres refuses, or that break, while a list is there.
fn narrow_finding(table: &str, narrow: &Narrow) -> Finding {
    let (omitted, columns) = (narrow.omitted.join(", "), narrow.columns.join(", "));
    let what = format!(
        "{table} is published without {omitted}; Postgres refuses ALTER COLUMN ... TYPE and DROP COLUMN on the others \
         ({columns}), DROP COLUMN ... CASCADE takes the table out of the publication and ends the run, and with REPLICA \
         IDENTITY FULL, or a key over {omitted}, UPDATE and DELETE fail until only inserts are told"
    );
    Finding::warning(
        what,
        format!("for such a migration take {table} out of source.omit_columns, and put it back after"),
    )
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
            let name_of = table.full_name();
            let finding = match &table.narrow {
                Some(Narrow { omitted, breaks: Some(why), .. }) if table.identified => Finding::warning(
                    format!(
                        "published without {}, and {why}: only its inserts are told, by {name}",
                        omitted.join(", ")
                    ),
                    format!("take {name_of} out of source.omit_columns, or go back to another identity"),
                ),
                _ => Finding::warning(
                    format!("neither a primary key nor full identity: only its inserts are told, by {name}"),
                    format!(
                        "ALTER TABLE {} REPLICA IDENTITY FULL;  -- or a primary key",
                        sql_name(&table.schema, &table.name)
                    ),
                ),
            };
            self.findings.push(finding.about(name_of));
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
        let ours = kept && there.ours;
        let relisted: Vec<_> = keyless.iter().copied().filter(|table| there.lists_otherwise(table, ours)).collect();
        let leaving: Vec<_> = relisted.iter().map(|table| sql_name(&table.schema, &table.name)).collect();
        self.alter(name, "DROP", &leaving);
        let joining: Vec<_> = relisted.iter().chain(&add).map(|table| sql_entry(table)).collect();
        self.alter(name, "ADD", &joining);
        self.joining.extend(add.iter().map(|table| table.full_name()));
        Ok(())
    }

    /// What column lists cost.
    fn warn_of_lists(&mut self, wanted: &[&CatalogTable]) {
        for table in wanted.iter().filter(|table| table.updates_fit()) {
            let finding = table.narrow.as_ref().map(|narrow| narrow_finding(&table.full_name(), narrow));
            self.findings.extend(finding);
        }
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
            let asked = wanted.iter().any(|wanted| table.is(wanted) && wanted.narrow.is_some());
            if table.columns.is_some() && !asked {
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
    /// How it lists a table.
    fn listing(&self, table: &CatalogTable) -> Option<&PublishedTable> {
        self.tables.iter().find(|listed| listed.is(table))
    }

    /// Whether it lists a table with other columns, or other rows, than are asked for. What others made is only held to
    /// a list that the config asks for.
    fn lists_otherwise(&self, table: &CatalogTable, ours: bool) -> bool {
        let Some(listed) = self.listing(table) else { return false };
        match &table.narrow {
            Some(narrow) => listed.columns.as_ref() != Some(&narrow.columns) || (ours && listed.row_filter),
            None => ours && (listed.columns.is_some() || listed.row_filter),
        }
    }

    pub(crate) fn covers(&self, table: &CatalogTable) -> bool {
        let listed = |schema: &str, name: &str| {
            let named = self.tables.iter().any(|listed| listed.schema == schema && listed.name == name);
            named || self.schemas.iter().any(|listed| listed == schema)
        };
        let by_root = table.root.as_ref().is_some_and(|root| listed(&root.schema, &root.name));
        self.all_tables || by_root || listed(&table.schema, &table.name)
    }

    /// Oids of the tables that were published when its comment was written.
    pub(crate) fn remembered(&self) -> Vec<u32> {
        let oids = self.comment.split_once(TABLES_ARE).map_or("", |(_, oids)| oids);
        oids.split_whitespace().filter_map(|oid| oid.parse().ok()).collect()
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

impl CatalogTable {
    /// Publishing its updates and deletes, with the column list that is asked for, breaks nothing.
    fn updates_fit(&self) -> bool {
        self.identified && self.narrow.as_ref().is_none_or(|narrow| narrow.breaks.is_none())
    }
}

fn names(tables: &[&CatalogTable]) -> String {
    tables.iter().map(|table| table.full_name()).collect::<Vec<_>>().join(", ")
}

fn sql_list(tables: &[&CatalogTable]) -> String {
    tables.iter().map(|table| sql_entry(table)).collect::<Vec<_>>().join(", ")
}

/// As it is added: with a column list where one is asked for.
fn sql_entry(table: &CatalogTable) -> String {
    let name = sql_name(&table.schema, &table.name);
    match &table.narrow {
        None => name,
        Some(narrow) => {
            let columns: Vec<_> = narrow.columns.iter().map(|column| escape_identifier(column)).collect();
            format!("{name} ({})", columns.join(", "))
        }
    }
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
            ..Default::default()
        }
    }

    fn narrow(table: CatalogTable, columns: &[&str], breaks: Option<&'static str>) -> CatalogTable {
        let columns = columns.iter().map(|column| column.to_string()).collect();
        CatalogTable { narrow: Some(Narrow { columns, omitted: vec!["photo".into()], breaks }), ..table }
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
    fn a_list_changes_in_one_transaction() {
        let wanted = [narrow(table("a", true), &["id", "n"], None)];
        let plan = planned(&pair(true, &["a"], &[]), &wanted, true).unwrap();
        assert_eq!(
            plan.statements,
            [
                r#"ALTER PUBLICATION "p" DROP TABLE ONLY "public"."a""#,
                r#"ALTER PUBLICATION "p" ADD TABLE ONLY "public"."a" ("id", "n")"#,
            ]
        );
        assert!(plan.joining.is_empty() && plan.findings[0].what.contains("DROP COLUMN ... CASCADE"), "{plan:?}");
        let mut there = pair(true, &["a"], &[]);
        there.rows.as_mut().unwrap().tables[0].columns = Some(vec!["id".into(), "n".into()]);
        assert!(planned(&there, &wanted, true).unwrap().statements.is_empty());
        // Back to whole rows, also where somebody added a filter.
        there.rows.as_mut().unwrap().tables[0].row_filter = true;
        assert_eq!(planned(&there, &[table("a", true)], true).unwrap().statements.len(), 2);
    }

    #[test]
    fn a_list_that_breaks_updates_is_refused_and_one_that_came_to_break_them_tells_inserts() {
        let wanted = [narrow(table("a", true), &["id"], Some("it has full identity"))];
        for there in [Publications::default(), pair(true, &[], &[]), pair(true, &["a"], &[])] {
            let error = planned(&there, &wanted, there.rows.is_some()).unwrap_err().to_string();
            assert!(error.starts_with("leave out photo of public.a: it has full identity"), "{error}");
        }
        let mut there = pair(true, &["a"], &[]);
        there.rows.as_mut().unwrap().tables[0].columns = Some(vec!["id".into()]);
        let plan = planned(&there, &wanted, true).unwrap();
        assert_eq!(
            plan.statements,
            [
                r#"ALTER PUBLICATION "p" DROP TABLE ONLY "public"."a""#,
                r#"ALTER PUBLICATION "p_inserts" ADD TABLE ONLY "public"."a" ("id")"#,
            ]
        );
        assert!(plan.joining.is_empty() && plan.findings[0].what.contains("only its inserts"), "{plan:?}");
    }

    #[test]
    fn a_publication_that_is_gone_is_a_gap() {
        let error = planned(&Publications::default(), &[table("a", true)], true).unwrap_err();
        assert!(matches!(error, PublicationFault::Gone(_)));
    }

    #[test]
    fn the_comment_remembers_the_tables() {
        let mut there = pair(true, &["a"], &[]);
        there.rows.as_mut().unwrap().comment = comment_with_tables("s", &[]);
        let of = |oid, name| CatalogTable { oid, ..table(name, true) };
        let plan = planned(&there, &[of(7, "a"), of(9, "b")], true).unwrap();
        assert_eq!(
            plan.statements.last().unwrap(),
            "COMMENT ON PUBLICATION \"p\" IS 'made by offshoot, and kept in step with its config; slot s was made; it is of the \
             tables 7 9'"
        );
        there.rows.as_mut().unwrap().comment = comment_with_tables("s", &[7, 9]);
        assert_eq!(there.rows.as_ref().unwrap().remembered(), [7, 9]);
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
