//! `if`: a CEL predicate over `old` and `new`, the root's row before and after. Pure.
//!
//! Columns are looked up by name as the predicate reads them: `old.status` is one name to CEL, so no map of a row is ever made.

use std::sync::{Arc, LazyLock};

use cel::{
    Context, Env, ExecutionError, Program, Value,
    common::{
        ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators},
        types::{CelBool, CelDouble, CelInt, CelNull, CelString},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use postgres_types::Type;

use super::{
    row::{Cell, Cells},
    rules::MappedTable,
};
use crate::text::{self, Digits};

/// A compiled predicate.
#[derive(Debug)]
pub struct Condition {
    /// As written.
    pub text: String,
    /// Compiled; `old['column']` has become `old.column`.
    pub program: IdedExpr,
    /// Indexes into the root's columns that it names of `old`.
    pub old: Vec<usize>,
    /// Indexes into the root's columns that it names of `new`.
    pub new: Vec<usize>,
}

/// CEL's own functions and operators: making them takes longer than any predicate.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::default().with_optional_support(false).with_stdlib()));

/// What a predicate may call beside operators.
const FUNCTIONS: &[&str] = &[
    "bool",
    "bytes",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "type",
    "uint",
];

/// The names of types, as `type(x) == int` has them.
const TYPES: &[&str] = &["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

const OLD: &str = "old";
const NEW: &str = "new";

impl Condition {
    /// Compiles a predicate; `column` gives the place of a column of the root by its name. In words, what is wrong with it.
    pub fn compile(text: &str, column: &dyn Fn(&str) -> Option<usize>) -> Result<Condition, String> {
        let program = Program::compile(text).map_err(|errors| {
            let first = errors.errors.first();
            first.map_or_else(|| errors.to_string(), |error| format!("{} (at character {})", error.msg, error.pos.1))
        })?;
        let mut condition =
            Condition { text: text.into(), program: program.expression().clone(), old: Vec::new(), new: Vec::new() };
        let mut names = Names { column, bound: Vec::new(), old: &mut condition.old, new: &mut condition.new };
        names.resolve(&mut condition.program)?;
        must_be_bool(type_of(&condition.program, &|_| Class::Any)?)?;
        Ok(condition)
    }

    /// Compares what it does with the types of the columns: in words, an operator that does not have them, or that can never hold.
    pub fn check(&self, table: &MappedTable) -> Result<(), String> {
        let class = |name: &str| {
            let column = table.columns.iter().find(|column| column.name == name);
            column.map_or(Class::Any, |column| Class::of(&column.ty))
        };
        must_be_bool(type_of(&self.program, &class)?)
    }

    /// Whether it holds of a root. In words, why that cannot be said: a column that the log does not carry, a null where a number is
    /// needed.
    pub fn holds(&self, table: &MappedTable, old: Option<Cells<'_>>, new: Option<Cells<'_>>) -> Result<bool, String> {
        let mut values = Values { values: Vec::with_capacity(self.old.len() + self.new.len()), old, new };
        for &column in &self.old {
            values.push(table, column, OLD, old.map_or(Cell::Null, |row| row.get(column)))?;
        }
        for &column in &self.new {
            let cell = match new.map_or(Cell::Null, |row| row.get(column)) {
                Cell::Unchanged => old.map_or(Cell::Unknown, |row| row.get(column)),
                cell => cell,
            };
            values.push(table, column, NEW, cell)?;
        }
        let mut context = Context::with_env(ENV.clone());
        context.set_variable_resolver(&values);
        match Value::resolve(&self.program, &context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("`if: {}` gives a {}, not true or false", self.text, other.type_of())),
            Err(error) => Err(format!("`if: {}` cannot be evaluated: {}", self.text, in_words(&error))),
        }
    }
}

fn must_be_bool(class: Class) -> Result<(), String> {
    match class {
        Class::Bool | Class::Any => Ok(()),
        other => Err(format!("it gives {}, and must give true or false", other.name())),
    }
}

/// Without the values that CEL's own texts have: they are the user's data.
fn in_words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchOverload(error) => {
            let hint = "; a null is compared first: `new.x != null && new.x > 1`";
            let null = error.argument_types().iter().any(|name| name == "null_type" || name == "null");
            format!("{error}{}", if null { hint } else { "" })
        }
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
            format!("`{operator}` does not take a {} and a {}", left.type_of(), right.type_of())
        }
        ExecutionError::UnexpectedType { got, want } => format!("a {got} where a {want} is needed"),
        ExecutionError::UndeclaredReference(name) | ExecutionError::NoSuchKey(name) => format!("{name} is unknown"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "a division by zero".into(),
        ExecutionError::Overflow(..) => "a number grows beyond 64 bits".into(),
        ExecutionError::FunctionError { function, .. } => format!("`{function}` refuses its argument"),
        _ => "its operators do not fit its values".into(),
    }
}

/// Resolves the names of a predicate, and gives `old['column']` the form that is looked up as one name.
struct Names<'a> {
    column: &'a dyn Fn(&str) -> Option<usize>,
    /// Variables of the macros around, such as the `x` of `list.exists(x, ...)`.
    bound: Vec<String>,
    old: &'a mut Vec<usize>,
    new: &'a mut Vec<usize>,
}

impl Names<'_> {
    fn resolve(&mut self, node: &mut IdedExpr) -> Result<(), String> {
        if let Some((side, field)) = indexed(&node.expr) {
            let operand = Box::new(IdedExpr { id: node.id, expr: Expr::Ident(side) });
            node.expr = Expr::Select(SelectExpr { operand, field, test: false });
        }
        match &mut node.expr {
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(side) if side == OLD || side == NEW => {
                    if select.test {
                        let field = format!("{side}.{}", select.field);
                        return Err(format!(
                            "`has({field})` is always true of a row that is there; write `{field} != null`"
                        ));
                    }
                    let column = (self.column)(&select.field)
                        .ok_or_else(|| format!("`{side}.{}`: the table has no such column", select.field))?;
                    let columns = if side == OLD { &mut *self.old } else { &mut *self.new };
                    if !columns.contains(&column) {
                        columns.push(column);
                    }
                    Ok(())
                }
                _ => self.resolve(&mut select.operand),
            },
            Expr::Ident(name) if name == OLD || name == NEW => Err(format!(
                "`{name}` is a row: write `{name}.column`, or `{name} == null` to ask whether it was there"
            )),
            Expr::Ident(name)
                if name.starts_with('@') || self.bound.contains(name) || TYPES.contains(&name.as_str()) =>
            {
                Ok(())
            }
            Expr::Ident(name) => {
                Err(format!("`{name}` is unknown; a column is `new.{name}` or `old.{name}`, a text is in quotes"))
            }
            Expr::Call(call) => self.resolve_call(call),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.resolve(element)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.resolve(&mut entry.key)?;
                    self.resolve(&mut entry.value)
                }
                EntryExpr::StructField(field) => self.resolve(&mut field.value),
            }),
            Expr::Comprehension(of) => {
                let names = [Some(of.iter_var.clone()), of.iter_var2.clone()];
                let bound = self.bound.len();
                self.resolve(&mut of.iter_range)?;
                self.resolve(&mut of.accu_init)?;
                for name in names.into_iter().flatten() {
                    if name == OLD || name == NEW {
                        return Err(format!("`{name}` is the row; give the variable of the macro another name"));
                    }
                    self.bound.push(name);
                }
                self.bound.push(of.accu_var.clone());
                self.resolve(&mut of.loop_cond)?;
                self.resolve(&mut of.loop_step)?;
                self.resolve(&mut of.result)?;
                self.bound.truncate(bound);
                Ok(())
            }
            Expr::Struct(of) => Err(format!("`{}` is unknown; a predicate has no messages", of.type_name)),
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
        }
    }

    fn resolve_call(&mut self, call: &mut CallExpr) -> Result<(), String> {
        let name = call.func_name.as_str();
        if matches!(name, operators::EQUALS | operators::NOT_EQUALS) && asks_for_a_row(call) {
            return Ok(());
        }
        let is_operator = name.starts_with(['_', '!', '-', '@']);
        if !is_operator && !FUNCTIONS.contains(&name) {
            return Err(format!("`{name}()` is unknown; there are {}", FUNCTIONS.join(", ")));
        }
        if let Some(target) = &mut call.target {
            self.resolve(target)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.resolve(argument))
    }
}

/// `old['column']`
fn indexed(expr: &Expr) -> Option<(String, String)> {
    let Expr::Call(CallExpr { func_name, target: None, args }) = expr else { return None };
    let [IdedExpr { expr: Expr::Ident(side), .. }, IdedExpr { expr: Expr::Literal(LiteralValue::String(field)), .. }] =
        &args[..]
    else {
        return None;
    };
    let is_row = side == OLD || side == NEW;
    (func_name == operators::INDEX && is_row).then(|| (side.clone(), field.inner().to_owned()))
}

/// `old == null`
fn asks_for_a_row(call: &CallExpr) -> bool {
    let is_row = |node: &IdedExpr| matches!(&node.expr, Expr::Ident(name) if name == OLD || name == NEW);
    let is_null = |node: &IdedExpr| matches!(node.expr, Expr::Literal(LiteralValue::Null));
    matches!(&call.args[..], [a, b] if is_row(a) && is_null(b) || is_null(a) && is_row(b))
}

/// What is known of a type before there is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Any,
    Bool,
    Int,
    UInt,
    Double,
    Text,
    Bytes,
    Null,
    List,
    Map,
}

impl Class {
    fn of(ty: &Type) -> Self {
        match *ty {
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => Class::Int,
            Type::BOOL => Class::Bool,
            Type::NUMERIC | Type::MONEY | Type::FLOAT4 | Type::FLOAT8 => Class::Double,
            _ => Class::Text,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Class::Any => "any",
            Class::Bool => "a bool",
            Class::Int => "an int",
            Class::UInt => "a uint",
            Class::Double => "a double",
            Class::Text => "a string",
            Class::Bytes => "bytes",
            Class::Null => "null",
            Class::List => "a list",
            Class::Map => "a map",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Class::Int | Class::UInt | Class::Double)
    }

    /// Whether a value of one can be a value of the other, or be compared with it.
    fn meets(self, other: Self) -> bool {
        self == other || self == Class::Any || other == Class::Any || self.is_number() && other.is_number()
    }
}

/// The type that an expression gives, as far as it can be told; what it does with types that do not go together is an error.
///
/// `column` has the class of a column; a null may stand in for any of them.
fn type_of(node: &IdedExpr, column: &dyn Fn(&str) -> Class) -> Result<Class, String> {
    let of = |node| type_of(node, column);
    Ok(match &node.expr {
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => Class::Bool,
            LiteralValue::Bytes(_) => Class::Bytes,
            LiteralValue::Double(_) => Class::Double,
            LiteralValue::Int(_) => Class::Int,
            LiteralValue::Null => Class::Null,
            LiteralValue::String(_) => Class::Text,
            LiteralValue::UInt(_) => Class::UInt,
        },
        Expr::Select(select) => match &select.operand.expr {
            Expr::Ident(side) if side == OLD || side == NEW => column(&select.field),
            _ => match of(&select.operand)? {
                Class::Any | Class::Map => Class::Any,
                other => return Err(format!("`.{}` of {}, which has no fields", select.field, other.name())),
            },
        },
        Expr::List(list) => {
            list.elements.iter().try_for_each(|element| of(element).map(|_| ()))?;
            Class::List
        }
        Expr::Map(_) => Class::Map,
        Expr::Call(call) => {
            let mut classes = Vec::with_capacity(call.args.len());
            for argument in &call.args {
                classes.push(of(argument)?);
            }
            type_of_call(call, &classes)?
        }
        Expr::Ident(_) | Expr::Comprehension(_) | Expr::Struct(_) | Expr::Unspecified => Class::Any,
    })
}

fn type_of_call(call: &CallExpr, classes: &[Class]) -> Result<Class, String> {
    let name = call.func_name.as_str();
    let sign = name.trim_matches('_');
    let clash = |a: Class, b: Class, why: &str| Err(format!("`{sign}` has {} and {}: {why}", a.name(), b.name()));
    match (name, classes) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, &[a, b]) => {
            must_be_bool(a)?;
            must_be_bool(b)?;
            Ok(Class::Bool)
        }
        (operators::LOGICAL_NOT, &[a]) => must_be_bool(a).map(|()| Class::Bool),
        (operators::CONDITIONAL, &[condition, a, b]) => {
            must_be_bool(condition)?;
            Ok(if a == b { a } else { Class::Any })
        }
        (operators::EQUALS | operators::NOT_EQUALS, &[a, b]) => {
            let null = a == Class::Null || b == Class::Null;
            // Two nulls need not be of one type.
            if null || a.meets(b) { Ok(Class::Bool) } else { clash(a, b, "they are never equal") }
        }
        (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, &[a, b]) => {
            let ordered = |class| !matches!(class, Class::Null | Class::List | Class::Map);
            if a.meets(b) && ordered(a) && ordered(b) { Ok(Class::Bool) } else { clash(a, b, "they have no order") }
        }
        (operators::IN, &[_, container]) => match container {
            Class::List | Class::Map | Class::Any => Ok(Class::Bool),
            other => Err(format!("`in` needs a list, and has {}", other.name())),
        },
        (operators::ADD, &[a, b]) => match (a, b) {
            (Class::Any, known) | (known, Class::Any) => Ok(known),
            (Class::Bool | Class::Null | Class::Map, _) => clash(a, b, "they cannot be added"),
            _ if a == b => Ok(a),
            _ => clash(a, b, "an operator needs two of one type; `double(...)` or `int(...)` makes them so"),
        },
        (operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, &[a, b]) => match (a, b) {
            (Class::Any, known) | (known, Class::Any) if known == Class::Any || known.is_number() => Ok(known),
            _ if a == b && a.is_number() => Ok(a),
            _ => clash(a, b, "an operator needs two numbers of one type; `double(...)` or `int(...)` makes them so"),
        },
        (operators::NEGATE, &[a]) => match a {
            Class::Any | Class::Int | Class::Double => Ok(a),
            other => Err(format!("`-` needs a number, and has {}", other.name())),
        },
        ("contains" | "startsWith" | "endsWith" | "matches" | "bool", _) => Ok(Class::Bool),
        ("size" | "int", _) => Ok(Class::Int),
        ("uint", _) => Ok(Class::UInt),
        ("double", _) => Ok(Class::Double),
        ("string", _) => Ok(Class::Text),
        ("bytes", _) => Ok(Class::Bytes),
        _ => Ok(Class::Any),
    }
}

/// The values that a predicate reads, under the names that it reads them by.
struct Values<'a> {
    values: Vec<(&'static str, &'a str, Box<dyn Val + 'a>)>,
    old: Option<Cells<'a>>,
    new: Option<Cells<'a>>,
}

impl<'a> Values<'a> {
    fn push(
        &mut self,
        table: &'a MappedTable,
        column: usize,
        side: &'static str,
        cell: Cell<'a>,
    ) -> Result<(), String> {
        let name = table.columns[column].name.as_str();
        let unfit = || format!("{side}.{name} of {} is not in the text form of its type", table.full_name());
        let value: Box<dyn Val + 'a> = match cell {
            Cell::Null => Box::new(CelNull),
            Cell::Text(bytes) => value(&table.columns[column].ty, bytes).ok_or_else(unfit)?,
            Cell::Unchanged | Cell::Unknown => {
                let table = table.full_name();
                return Err(format!(
                    "the transaction does not carry {side}.{name} of {table}; `ALTER TABLE {table} REPLICA IDENTITY FULL` makes it \
                     carry old values"
                ));
            }
        };
        self.values.push((side, name, value));
        Ok(())
    }
}

impl VariableResolver for Values<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let row = |row: Option<Cells<'_>>| match row {
            // That it is there is all that may be asked of a row.
            Some(_) => CowVal::owned(CelBool::from(true)),
            None => CowVal::owned(CelNull),
        };
        match variable {
            OLD => return Some(row(self.old)),
            NEW => return Some(row(self.new)),
            _ => {}
        }
        let (side, name) = variable.split_once('.')?;
        let found = self.values.iter().find(|(of, column, _)| *of == side && *column == name);
        found.map(|(_, _, value)| CowVal::Borrowed(&**value))
    }
}

/// A value as CEL has it: integers are ints; `numeric`, `money`, `real` and `double precision` the nearest double; everything else its
/// text.
fn value<'a>(ty: &Type, bytes: &'a [u8]) -> Option<Box<dyn Val + 'a>> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(match Class::of(ty) {
        Class::Int => Box::new(CelInt::from(text.parse::<i64>().ok()?)),
        Class::Bool => Box::new(CelBool::from(match text {
            "t" => true,
            "f" => false,
            _ => return None,
        })),
        Class::Double if *ty == Type::MONEY => {
            let money = text::money(bytes)?;
            Digits::read(money.text())?;
            Box::new(CelDouble::from(std::str::from_utf8(money.text()).ok()?.parse::<f64>().ok()?))
        }
        // Rust's words for what is not finite are Postgres' own.
        Class::Double => Box::new(CelDouble::from(text.parse::<f64>().ok()?)),
        _ => Box::new(CelString::from(text)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::{rules::MappedColumn, value::Writer};

    fn table() -> MappedTable {
        let column = |name: &str, ty| MappedColumn {
            name: name.into(),
            ty,
            modifier: -1,
            decimal: None,
            zone: None,
            writer: Writer::Text,
            needed_by: String::new(),
        };
        let columns = vec![
            column("id", Type::INT8),
            column("status", Type::TEXT),
            column("price", Type::NUMERIC),
            column("paid", Type::BOOL),
            column("odd name", Type::MONEY),
            column("at", Type::TIMESTAMPTZ),
        ];
        MappedTable {
            oid: 0,
            schema: "public".into(),
            name: "orders".into(),
            columns,
            key_len: 1,
            roles: Vec::new(),
            held: false,
        }
    }

    fn compiled(text: &str) -> Result<Condition, String> {
        let table = table();
        let condition = Condition::compile(text, &|name| table.columns.iter().position(|column| column.name == name))?;
        condition.check(&table).map(|()| condition)
    }

    fn cells(values: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in values {
            match value {
                Some("?") => Cell::Unknown,
                Some("u") => Cell::Unchanged,
                Some(text) => Cell::Text(text.as_bytes()),
                None => Cell::Null,
            }
            .write(&mut bytes);
        }
        bytes
    }

    const BEFORE: [Option<&str>; 6] = [
        Some("9007199254740993"),
        Some("cart"),
        Some("19.99"),
        Some("f"),
        Some("$1,234.50"),
        Some("2015-01-10 14:00:00+00"),
    ];
    const AFTER: [Option<&str>; 6] =
        [Some("9007199254740993"), Some("placed"), Some("20"), Some("t"), None, Some("2015-01-10 14:00:00.5+00")];

    fn holds(text: &str, old: Option<[Option<&str>; 6]>, new: Option<[Option<&str>; 6]>) -> Result<bool, String> {
        let (old, new) = (old.map(|row| cells(&row)), new.map(|row| cells(&row)));
        let row = |bytes: &'static [u8]| Cells { bytes };
        compiled(text)?.holds(&table(), old.map(|bytes| row(bytes.leak())), new.map(|bytes| row(bytes.leak())))
    }

    #[test]
    fn compares_values_by_their_types() {
        for (text, expected) in [
            ("new.status == 'placed'", true),
            ("old.status == 'cart' && new.status != old.status", true),
            ("new.id == 9007199254740993 && new.id != 9007199254740992", true),
            ("old.price < 20 && new.price >= 19.99 && 20 == new.price", true),
            ("old['odd name'] > 1234.4 && new['odd name'] == null", true),
            ("new.paid && !old.paid", true),
            ("new.status in ['placed', 'paid']", true),
            ("['a', 'placed'].exists(x, x == new.status)", true),
            ("new.status.startsWith('pla') && new.status.matches('^p.*d$') && size(new.status) == 6", true),
            ("new.at > old.at", true),
            ("old != null && new != null", true),
            ("double(new.id) * 2.0 > new.price ? new.paid : false", true),
            ("new.price - old.price > 0.02", false),
            ("type(new.id) == string", false),
        ] {
            assert_eq!(holds(text, Some(BEFORE), Some(AFTER)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_row_that_was_not_there_is_null_and_so_are_its_columns() {
        for (text, expected) in [
            ("old == null", true),
            ("null != new", true),
            ("old.status == null", true),
            ("old.status != new.status", true),
            ("old != null && old.price > 3", false),
        ] {
            assert_eq!(holds(text, None, Some(AFTER)), Ok(expected), "{text}");
        }
        assert_eq!(holds("new == null && new.status == null", Some(BEFORE), None), Ok(true));
    }

    #[test]
    fn names_the_columns_that_it_reads_once() {
        let condition =
            compiled("old.status == 'a' || new['odd name'] > 1 && new.id == 1 && old.status == 'b'").unwrap();
        assert_eq!((condition.old, condition.new), (vec![1], vec![4, 0]));
    }

    #[test]
    fn refuses_what_can_never_be_evaluated() {
        for (text, words) in [
            ("new.status ==", "character"),
            ("new.state == 'x'", "`new.state`: the table has no such column"),
            ("status == 'x'", "a column is `new.status`"),
            ("new.status == placed", "a text is in quotes"),
            ("new == 'x'", "`new` is a row"),
            ("old", "`old` is a row"),
            ("has(new.status)", "write `new.status != null`"),
            ("['a'].exists(old, old == 'a')", "another name"),
            ("lower(new.status) == 'x'", "`lower()` is unknown; there are bool, bytes"),
            ("new.status", "it gives a string"),
            ("new.id + 1", "it gives an int"),
            ("new.id == 'x'", "an int and a string: they are never equal"),
            ("new.status > 1", "a string and an int: they have no order"),
            ("new.price * 2 > 1", "two numbers of one type"),
            ("new.id + new.status == 'x'", "two of one type"),
            ("new.id && true", "it gives an int"),
            ("new.id in 'abc'", "`in` needs a list"),
            ("new.status.size.x == 1", "which has no fields"),
            ("Message{a: 1} == null", "no messages"),
        ] {
            let error = compiled(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn never_guesses_a_value() {
        let with = |value| {
            let mut row = AFTER;
            row[1] = Some(value);
            row
        };
        let error = holds("old.status == 'cart'", Some(with("?")), Some(AFTER)).unwrap_err();
        assert!(
            error.contains("does not carry old.status of public.orders; `ALTER TABLE public.orders REPLICA"),
            "{error}"
        );
        assert!(holds("new.status == 'cart'", Some(with("?")), Some(with("u"))).is_err());
        assert_eq!(holds("new.status == 'cart'", Some(BEFORE), Some(with("u"))), Ok(true));
        // What it does not read may be unknown.
        assert_eq!(holds("new.paid", Some(with("?")), Some(AFTER)), Ok(true));
    }

    #[test]
    fn says_what_is_wrong_without_the_values() {
        let mut new = AFTER;
        new[2] = None;
        let error = holds("new.price > 10", None, Some(new)).unwrap_err();
        assert!(error.contains("a null is compared first"), "{error}");
        for text in ["new.price > 10", "int(new.status) > 3", "1 / size(new.status) == 0 && new.id / 0 > 1"] {
            let mut new = AFTER;
            new[2] = Some("NaN");
            let error = holds(text, None, Some(new)).unwrap_err();
            assert!(!error.contains("placed") && !error.contains("9007"), "{error}");
        }
        let mut new = AFTER;
        new[2] = Some("secret");
        let error = holds("new.price > 10", None, Some(new)).unwrap_err();
        assert!(error.ends_with("new.price of public.orders is not in the text form of its type"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Words that predicates are made of, in any order.
        #[test]
        fn no_text_is_a_panic(words in prop::collection::vec(prop::sample::select(WORDS), 0..12)) {
            if let Ok(condition) = compiled(&words.concat()) {
                let (old, new) = (cells(&BEFORE), cells(&AFTER));
                let _ = condition.holds(&table(), Some(Cells { bytes: &old }), Some(Cells { bytes: &new }));
                let _ = condition.holds(&table(), None, Some(Cells { bytes: &new }));
            }
        }
    }

    const WORDS: &[&str] = &[
        "new",
        "old",
        ".status",
        ".price",
        ".id",
        ".paid",
        "['odd name']",
        "new.id",
        "old.price",
        "new.paid",
        "==",
        "!=",
        "<",
        ">=",
        " && ",
        " || ",
        "!",
        "-",
        "+",
        "/",
        "%",
        " in ",
        "(",
        ")",
        "[",
        "]",
        ",",
        "{",
        "}",
        ":",
        "?",
        "null",
        "true",
        "1",
        "2.5",
        "3u",
        "'x'",
        "size(",
        ".exists(x, ",
        ".map(x, x",
        "matches('(')",
        "int(",
        "type(",
        ".?id",
        "`a b`",
        "\\",
        "\"",
        "é",
    ];
}
