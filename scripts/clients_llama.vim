" Run by scripts/clients in Vim or Neovim: llama.vim itself asks while somebody types, its completion is taken, and it asks again.
set nocompatible

function! s:wait() abort
  for l:round in range(3000)
    if llama#is_fim_hint_shown()
      return
    endif
    sleep 100m
  endfor
  throw 'no completion was shown'
endfunction

" In insert mode, as llama.vim wants it.
function! Typed() abort
  try
    let g:cache_data = {}
    call llama#fim(col('.') - 1, line('.'), v:false, [], v:false)
    call s:wait()
    let l:shown = json_decode(values(g:cache_data)[0])['content']
    call llama#fim_accept('full')
    let l:taken = getline(62)
    call llama#fim(col('.') - 1, line('.'), v:false, [], v:false)
    call s:wait()
    let s:result = {'shown': l:shown, 'taken': l:taken, 'error': ''}
  catch
    let s:result = {'error': v:exception .. ' at ' .. v:throwpoint}
  endtry
  call writefile([json_encode(s:result)], $RESULT)
  qall!
endfunction

try
  execute 'set runtimepath+=' .. fnameescape($PLUGIN)
  execute 'source' fnameescape($SETTINGS)
  let g:llama_config.auto_fim = v:false
  runtime plugin/llama.vim
  call llama#init()
  enew
  let s:lines = map(range(60), {at, _ -> at % 2 ? '    return ' .. at : 'def number_' .. at .. '():'})
  call setline(1, s:lines + ['def add(first, second):', '    return ', '', '', 'print(add(1, 2))'])
  call cursor(62, 1)
  call feedkeys("A\<Cmd>call Typed()\<CR>", 'tx!')
catch
  call writefile([json_encode({'error': v:exception .. ' at ' .. v:throwpoint})], $RESULT)
  qall!
endtry
