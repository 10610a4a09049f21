//! Objects that pods refer to (config maps, secrets, services), fetched through the API and kept for a while.
//!
//! When the API cannot be reached, what was fetched before is used: a container of a running pod can be started again without servers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kontiki_base::Code;
use kontiki_base::env::{Env, Mono};
use kontiki_base::limits;
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use serde_json::Value;

use crate::api::{Client, Scope};
use crate::error::ApiError;

/// An object this old is as good as new: several containers of one pod start at once.
const FRESH: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct Cached {
    at: Mono,
    value: Arc<Value>,
}

type CacheKey = (&'static str, ObjectKey);

/// The cache.
pub struct Objects {
    client: Client,
    env: Arc<dyn Env>,
    cache: Mutex<BTreeMap<CacheKey, Cached>>,
}

impl Objects {
    /// An empty cache in front of this client.
    pub fn new(client: Client, env: Arc<dyn Env>) -> Self {
        Self { client, env, cache: Mutex::new(BTreeMap::new()) }
    }

    /// The client itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<CacheKey, Cached>> {
        // A map of plain values: a panic elsewhere cannot have left it half-changed.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: CacheKey, value: Value) -> Arc<Value> {
        let value = Arc::new(value);
        let mut cache = self.lock();
        if cache.len() >= limits::NODE_OBJECTS && !cache.contains_key(&key) {
            let oldest = cache.iter().min_by_key(|(_, c)| c.at).map(|(key, _)| key.clone());
            oldest.map(|key| cache.remove(&key));
        }
        cache.insert(key, Cached { at: self.env.now_mono(), value: Arc::clone(&value) });
        value
    }

    fn cached(&self, key: &CacheKey) -> Option<Cached> {
        self.lock().get(key).cloned()
    }

    /// An object; `None` if there is none.
    ///
    /// # Errors
    /// If the API answers with another error than "not found", or cannot be reached and the object was never fetched before.
    pub async fn get(&self, kind: Kind, key: &ObjectKey) -> Result<Option<Arc<Value>>, ApiError> {
        let slot = (kind.plural(), key.clone());
        let cached = self.cached(&slot);
        if let Some(fresh) = cached.as_ref().filter(|c| self.env.now_mono().since(c.at) < FRESH) {
            return Ok(Some(Arc::clone(&fresh.value)));
        }
        match self.client.get(kind, key).await {
            Ok(object) => Ok(Some(self.remember(slot, object.parse()?))),
            Err(e) if e.code == Code::NotFound => {
                self.lock().remove(&slot);
                Ok(None)
            }
            Err(e) if e.is_ambiguous() => cached.map(|c| Some(c.value)).ok_or(e),
            Err(e) => Err(e),
        }
    }

    /// All services of a namespace, as an array.
    ///
    /// # Errors
    /// As [`Objects::get`].
    pub async fn services(&self, namespace: &str) -> Result<Arc<Value>, ApiError> {
        let slot = ("services of", ObjectKey::new(namespace, ""));
        let cached = self.cached(&slot);
        if let Some(fresh) = cached.as_ref().filter(|c| self.env.now_mono().since(c.at) < FRESH) {
            return Ok(Arc::clone(&fresh.value));
        }
        let scope = Scope { namespace: namespace.to_owned(), ..Scope::default() };
        match self.client.list(Kind::Service, &scope).await {
            Ok((_, items)) => {
                let items: Result<Vec<Value>, ApiError> = items.iter().map(crate::api::Object::parse).collect();
                Ok(self.remember(slot, Value::Array(items?)))
            }
            Err(e) if e.is_ambiguous() => cached.map(|c| c.value).ok_or(e),
            Err(e) => Err(e),
        }
    }
}
