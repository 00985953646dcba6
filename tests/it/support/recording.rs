//! What comes through a replication session <-> a file that is read back.
//!
//! It is JSON, a line each: the server, then in their order the CopyData payloads in hexadecimal and what the catalog answered.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    fs,
    path::Path,
    rc::Rc,
};

use offshoot::{
    change::Ancestor,
    postgres::{Question, TableFacts, TableKind, TypeFact, Wire},
    source::{Load, LoadTable, SourceError},
};
use postgres_types::{Kind, Type};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first one: what `SHOW server_version` says, and the database.
    Server { version: String, database: String },
    /// Hexadecimal.
    Payload(String),
    /// Of the table of the Relation message before it.
    Facts { oid: u32, answer: Facts },
}

/// `TableFacts`, written down.
#[derive(Serialize, Deserialize)]
pub struct Facts {
    schema: String,
    name: String,
    partitioned: bool,
    ancestors: Vec<(String, String)>,
    primary_key: Vec<String>,
    identity_index: Vec<String>,
    unique: Option<Vec<String>>,
    types: BTreeMap<u32, (TypeForm, Option<i32>)>,
}

/// `postgres_types::Type`, written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeForm {
    BuiltIn(u32),
    Simple(TypeName),
    Composite(TypeName),
    Enum(TypeName, Vec<String>),
    Array(TypeName, Box<TypeForm>),
    Range(TypeName, Box<TypeForm>),
    Multirange(TypeName, Box<TypeForm>),
}

#[derive(Serialize, Deserialize)]
pub struct TypeName {
    oid: u32,
    schema: String,
    name: String,
}

impl TypeForm {
    fn of(ty: &Type) -> TypeForm {
        if Type::from_oid(ty.oid()).is_some() {
            return TypeForm::BuiltIn(ty.oid());
        }
        let name = TypeName { oid: ty.oid(), schema: ty.schema().into(), name: ty.name().into() };
        match ty.kind() {
            Kind::Simple => TypeForm::Simple(name),
            Kind::Composite(_) => TypeForm::Composite(name),
            Kind::Enum(labels) => TypeForm::Enum(name, labels.clone()),
            Kind::Array(element) => TypeForm::Array(name, Box::new(TypeForm::of(element))),
            Kind::Range(subtype) => TypeForm::Range(name, Box::new(TypeForm::of(subtype))),
            Kind::Multirange(subtype) => TypeForm::Multirange(name, Box::new(TypeForm::of(subtype))),
            kind => panic!("the catalog resolves a {kind:?}"),
        }
    }

    fn to_type(&self) -> Type {
        let (name, kind) = match self {
            TypeForm::BuiltIn(oid) => return Type::from_oid(*oid).expect("it was built in"),
            TypeForm::Simple(name) => (name, Kind::Simple),
            TypeForm::Composite(name) => (name, Kind::Composite(Vec::new())),
            TypeForm::Enum(name, labels) => (name, Kind::Enum(labels.clone())),
            TypeForm::Array(name, element) => (name, Kind::Array(element.to_type())),
            TypeForm::Range(name, subtype) => (name, Kind::Range(subtype.to_type())),
            TypeForm::Multirange(name, subtype) => (name, Kind::Multirange(subtype.to_type())),
        };
        Type::new(name.name.clone(), name.oid, kind, name.schema.clone())
    }
}

impl Facts {
    /// To be written down.
    pub fn of(facts: &TableFacts) -> Facts {
        let types = facts.types.iter().map(|(oid, fact)| (*oid, (TypeForm::of(&fact.ty), fact.modifier)));
        Facts {
            schema: facts.schema.clone(),
            name: facts.name.clone(),
            partitioned: facts.kind == TableKind::Partitioned,
            ancestors: facts.ancestors.iter().map(|above| (above.schema.clone(), above.name.clone())).collect(),
            primary_key: facts.primary_key.clone(),
            identity_index: facts.identity_index.clone(),
            unique: facts.unique.clone(),
            types: types.collect(),
        }
    }

    /// As they were.
    pub fn to_facts(&self) -> TableFacts {
        let types = self.types.iter();
        let types = types.map(|(oid, (ty, modifier))| (*oid, TypeFact { ty: ty.to_type(), modifier: *modifier }));
        TableFacts {
            gone: false,
            schema: self.schema.clone(),
            name: self.name.clone(),
            kind: if self.partitioned { TableKind::Partitioned } else { TableKind::Table },
            // Whose oids nothing that is recorded needs.
            ancestors: self.ancestors.iter().cloned().map(|(schema, name)| Ancestor { oid: 0, schema, name }).collect(),
            primary_key: self.primary_key.clone(),
            identity_index: self.identity_index.clone(),
            unique: self.unique.clone(),
            types: types.collect(),
        }
    }
}

/// A session that writes down what comes through it.
pub struct Recording<W> {
    pub wire: W,
    pub lines: Rc<RefCell<Vec<Line>>>,
}

impl<W: Wire> Wire for Recording<W> {
    fn load(&mut self, tables: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        self.wire.load(tables)
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        self.wire.readable().await
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let payload = self.wire.payload()?;
        if let Some(payload) = payload {
            self.lines.borrow_mut().push(Line::Payload(hex(payload)));
        }
        Ok(payload)
    }

    async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        self.wire.write(payload).await
    }

    async fn facts(&mut self, question: &Question) -> Result<TableFacts, SourceError> {
        let facts = self.wire.facts(question).await?;
        self.lines.borrow_mut().push(Line::Facts { oid: question.table, answer: Facts::of(&facts) });
        Ok(facts)
    }

    async fn close(self) {
        self.wire.close().await;
    }
}

/// A recording, played.
pub struct Played {
    pub lines: VecDeque<Line>,
    payload: Vec<u8>,
}

impl Played {
    /// From its first payload on.
    pub fn new(lines: VecDeque<Line>) -> Played {
        Played { lines, payload: Vec::new() }
    }
}

impl Wire for Played {
    fn load(&mut self, _: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        unreachable!("nothing is loaded here")
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        match self.lines.front() {
            Some(Line::Payload(_)) => Ok(()),
            _ => Err(SourceError::Passing("the recording has nothing more to say".into())),
        }
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let Some(Line::Payload(payload)) = self.lines.front() else { return Ok(None) };
        self.payload = unhex(payload);
        self.lines.pop_front();
        Ok(Some(&self.payload))
    }

    async fn write(&mut self, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    async fn facts(&mut self, question: &Question) -> Result<TableFacts, SourceError> {
        match self.lines.pop_front() {
            Some(Line::Facts { oid, answer }) if oid == question.table => Ok(answer.to_facts()),
            _ => panic!("the recording has no answer to {question:?} here"),
        }
    }

    async fn close(self) {}
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes it");
        text
    })
}

/// The bytes of digits.
pub fn unhex(text: &str) -> Vec<u8> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty());
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

/// Reads a file.
pub fn load(file: &Path) -> Vec<Line> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Writes a file.
pub fn save(file: &Path, lines: &[Line]) {
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}
